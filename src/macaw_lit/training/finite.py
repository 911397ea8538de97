"""What to do when numbers are not finite: skip a few steps of fp16, then stop and say where it began."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from macaw_lit.errors import ConfigError, TrainingError
from macaw_lit.model import Macaw
from macaw_lit.training.strategies import from_all_processes
from macaw_lit.types import Batch, Output

_SHOWN = 4  # rows named in a message


class StopAtOverflows(Callback):
    """Counts optimizer steps that fp16 skipped, and ends training when too many of them came in a row.

    fp16 ends at 65,504. So the loss is scaled, a step whose gradients are not finite is skipped, and the scale falls.
    Some such steps are how the scale is found; many in a row mean that no scale helps, and training stands still. Logs
    `train/loss_scale` and `train/skipped_steps`, and does nothing where the loss is not scaled.

    Args:
        max_overflows: steps in a row that may not all overflow.

    Raises:
        ConfigError: it is not positive.
        TrainingError: while training, from all processes at once, with the part where gradients were not finite first.
    """

    def __init__(self, max_overflows: int = 10) -> None:
        if max_overflows < 1:
            raise ConfigError(f"max_overflows={max_overflows}; expected at least 1, such as 10")
        self.max_overflows = max_overflows
        self.skipped = 0
        self.in_a_row = 0
        self._step = 0
        self._scale: float | None = None
        self._gradients: _Gradients | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.strategy, DeepSpeedStrategy) and trainer.strategy.deepspeed_engine.fp16_enabled():
            # Or an overflow at the smallest scale would end training with an error of DeepSpeed's, without a place.
            trainer.strategy.deepspeed_engine.optimizer.loss_scaler.raise_error_at_min_scale = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._step, self._scale = trainer.global_step, loss_scale(trainer)
        if self._scale is not None and self.in_a_row >= self.max_overflows - 1 and self._gradients is None:
            module: Any = pl_module
            self._gradients = _Gradients(module.model)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        scale = loss_scale(trainer)
        if scale is None or self._scale is None or trainer.global_step == self._step:
            return
        overflowed = _overflowed(trainer, self._scale, scale)
        self.skipped += overflowed
        self.in_a_row = self.in_a_row + 1 if overflowed else 0
        pl_module.log("train/loss_scale", scale)
        pl_module.log("train/skipped_steps", float(self.skipped))
        gradients, self._gradients = self._gradients, None
        where = gradients.close() if gradients else None
        if self.in_a_row >= self.max_overflows:
            found = [place for place in from_all_processes(where) if place]
            raise TrainingError(
                f"{self.in_a_row} steps in a row overflowed fp16 by step {trainer.global_step}, the loss scale is down "
                f"to {scale:g}: gradients were not finite first in {found[0] if found else 'no single process'}; take "
                "a bf16 trainer, a lower optim.lr, or fp32, from the last checkpoint before"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


class _Gradients:
    """Watches each weight's gradient as it comes, whatever the strategy makes of it then."""

    def __init__(self, model: Macaw) -> None:
        self.first: list[tuple[str, Tensor]] = []
        self._handles = [
            parameter.register_hook(self._watch(f"{part}: {name}"))
            for part, module in model.parts().items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]

    def _watch(self, place: str) -> Callable[[Tensor], None]:
        return lambda gradient: self.first.append((place, gradient.isfinite().all()))

    def close(self) -> str | None:
        """The part and weight whose gradient was first not finite, on the way back from the loss."""
        for handle in self._handles:
            handle.remove()
        return next((place for place, finite in self.first if not finite), None)


def loss_scale(trainer: Trainer) -> float | None:
    """What the loss is multiplied by for fp16; None where it is not scaled."""
    strategy, precision = trainer.strategy, trainer.precision_plugin
    if isinstance(strategy, DeepSpeedStrategy):
        engine = strategy.deepspeed_engine
        return float(engine.optimizer.cur_scale) if engine.fp16_enabled() else None
    scaler = getattr(precision, "scaler", None)
    return None if scaler is None else float(scaler.get_scale())


def _overflowed(trainer: Trainer, before: float, after: float) -> bool:
    if isinstance(trainer.strategy, DeepSpeedStrategy):  # its scale need not fall at the first overflow
        optimizer: Any = trainer.strategy.deepspeed_engine.optimizer
        return bool(optimizer.overflow)
    return after < before


def explain_loss(model: Macaw, batch: Batch, loss: Tensor) -> str:
    """Which rows have a loss that is not finite, and where in the model it comes from.

    Every process must call it together, because the model runs once more, and gets the same answer.

    Args:
        loss: of this process' batch.
    """
    where = _first_not_finite(model, batch)
    own = None if loss.isfinite() else (batch.uids, where)
    found = [each for each in from_all_processes(own) if each]
    uids, places = [uid for listed, _ in found for uid in listed], dict.fromkeys(place for _, place in found)
    rows = ", ".join(uids[:_SHOWN]) + (", …" if len(uids) > _SHOWN else "")
    return f"the loss of {rows} is not finite, which begins with {' and '.join(places)}"


@torch.no_grad()
def _first_not_finite(model: Macaw, batch: Batch) -> str:
    inputs = [f"the {kind} itself" for kind, media in batch.media.items() if not media.values.isfinite().all()]
    weights = [
        f"the weights of {name}"
        for name, part in model.parts().items()
        if not all(_local(parameter).isfinite().all() for parameter in part.parameters())
    ]
    outputs: list[str] = []

    def watch(module: nn.Module, name: str) -> RemovableHandle:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            values = output.nll if isinstance(output, Output) else output
            if values is not None and not values.isfinite().all():
                outputs.append(f"the output of {name}")

        return module.register_forward_hook(look)

    aligners = {f"the {kind} aligner": way.get_submodule("aligner") for kind, way in model.modalities.items()}
    watched = {**dict(model.encoders.items()), **aligners, "llm": model.llm}
    handles = [watch(module, name) for name, module in watched.items()]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return next(iter([*inputs, *weights, *outputs]), "no part, when it is computed again")


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
