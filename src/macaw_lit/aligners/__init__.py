"""Features → soft tokens of the LLM, one module per kind of aligner."""
