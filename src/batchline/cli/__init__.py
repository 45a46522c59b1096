"""The composition root (build the objects, serve) and the commands a person types."""
