"""The LightningModule: loss, log, optimizer, schedule, and nothing about files or shapes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from macaw_lit.model import Macaw
from macaw_lit.training.optim import cosine_with_warmup
from macaw_lit.types import Batch


class MacawModule(LightningModule):
    """Trains all of a `Macaw` in one stage on the loss of the response's tokens (Eq. 6).

    Args:
        config: sizes of the model, for `Macaw.from_config`.
        optimizer: model → optimizer.
        warmup_ratio: share of all steps in which the learning rate rises.
        pretrained: part → weights, for `Macaw.load_pretrained`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        optimizer: Callable[[torch.nn.Module], Optimizer],
        warmup_ratio: float = 0.03,
        pretrained: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.pretrained = pretrained or {}
        self.build_optimizer = optimizer
        self.warmup_ratio = warmup_ratio
        self._model: Macaw | None = None

    def configure_model(self) -> None:
        """Build here and not in `__init__`, so that strategies that shard can do so at creation."""
        if self._model is None:
            self._model = Macaw.from_config(self.config)
            self._model.load_pretrained(self.pretrained)

    @property
    def model(self) -> Macaw:
        """The model, once `configure_model` has built it."""
        assert self._model is not None, "configure_model() has not run"
        return self._model

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.uids))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch), prog_bar=True, batch_size=len(batch.uids), sync_dist=True)

    def _loss(self, batch: Batch) -> Tensor:
        """Mean NLL over the response tokens of the micro-batch, over all ranks together."""
        output = self.model(batch)
        # Strategies average gradients over ranks; a rank with more response tokens must weigh more.
        tokens = torch.as_tensor(self.all_gather(output.tokens)).sum().clamp(min=1)
        return output.nll * self.trainer.world_size / tokens

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.build_optimizer(self.model)
        schedule = cosine_with_warmup(optimizer, int(self.trainer.estimated_stepping_batches), self.warmup_ratio)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
