"""How large the gradient of each part is."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from macaw_lit.health import gradient_norm
from macaw_lit.training.finite import loss_scale
from macaw_lit.training.module import MacawModule
from macaw_lit.training.strategies import ZeRO


class GradientNorms(Callback):
    """Logs `gradient/<part>` each time the trainer logs: the L2 norm over a part's weights, before clipping.

    Parts are the encoders by name, `aligner_<kind>` and `llm`. Parts without a gradient are left out. Where a strategy
    divides gradients among processes they are brought together, one weight's at a time.
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
        scale = loss_scale(trainer) if isinstance(trainer.strategy, ZeRO) else None  # others undo it before
        for name, part in (*parts.items(), ("llm", pl_module.model.llm)):
            if (norm := gradient_norm(part)) is not None:
                pl_module.log(f"gradient/{name}", norm / (scale or 1.0), batch_size=1)
