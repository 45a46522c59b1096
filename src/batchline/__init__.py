"""Batchline: the OpenAI Batch API for any OpenAI-compatible inference backend."""

__version__ = "0.1.0"
