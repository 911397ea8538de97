"""How large the gradient of each part is."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from macaw_lit.training.module import MacawModule


class GradientNorms(Callback):
    """Logs `gradient/<part>` each time the trainer logs: the L2 norm over a part's weights, before clipping.

    Parts are the encoders by name, `aligner_<kind>` and `llm`. Parts without a gradient are left out, and so are all
    of them where a strategy divides gradients among processes: ZeRO and FSDP.
    """

    figures = "gradient/"  # what the names of all that it measures begin with

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # assigned by a connector
        if not interval or (trainer.global_step + 1) % interval:
            return
        assert isinstance(pl_module, MacawModule)
        modalities: dict[str, Any] = dict(pl_module.model.modalities.items())
        parts = dict(pl_module.model.encoders.items())
        parts |= {f"aligner_{kind}": modality.aligner for kind, modality in modalities.items()}
        for name, part in (*parts.items(), ("llm", pl_module.model.llm)):
            if gradients := _whole_gradients(part):
                pl_module.log(f"gradient/{name}", nn.utils.get_total_norm(gradients), batch_size=1)


def _whole_gradients(part: nn.Module) -> list[torch.Tensor]:
    gradients = [weight.grad for weight in part.parameters() if weight.grad is not None]
    return [gradient for gradient in gradients if type(gradient) is torch.Tensor]
