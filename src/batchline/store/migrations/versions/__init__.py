"""The migrations, oldest first by number; each is frozen once it was released."""
