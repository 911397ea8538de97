"""Embeddings → loss or new tokens, one module per family of language models."""
