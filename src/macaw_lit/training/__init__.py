"""The LightningModule, optimizers and callbacks."""

import logging

# It warns of faster kernels that it could not fetch when it is imported, which peft does wherever it is installed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
