"""How lines reach a backend: workers in child processes, permits, circuits, transports."""
