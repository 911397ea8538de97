"""Media tensor → features, one module per family of encoders."""
