"""macaw-lit: one language model that sees, watches and listens."""

__version__ = "0.1.0"
