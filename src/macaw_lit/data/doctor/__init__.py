"""A look at every row and medium before training: what would be skipped, what is odd, and where."""
