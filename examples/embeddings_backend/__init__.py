"""A small OpenAI-compatible embeddings backend that runs a real model in its own process.

It is what `make demo` points Batchline at, and a starting point for anyone who wants embeddings
without a GPU, a model hub or a network: `python -m examples.embeddings_backend`. See README.md.
"""
