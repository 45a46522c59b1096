"""How one request crosses the network: the Transport contract's implementations."""
