"""Checkpoints of the original Macaw-LLM: which version, which names, which sizes, and what of it is of no use."""
