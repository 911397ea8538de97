"""The LightningModule, optimizers and callbacks."""
