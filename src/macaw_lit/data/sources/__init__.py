"""One reader per data format: rows on disk → `Sample`, or `Rejection` with its cause."""
