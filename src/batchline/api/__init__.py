"""HTTP in, JSON out: routes, wire shapes, the error envelope."""
