"""How fast training goes, what of it is waiting for data, and how much of the machine's arithmetic that uses."""

import time
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from macaw_lit.errors import ConfigError
from macaw_lit.llms.hf import HFCausalLM
from macaw_lit.model import Macaw
from macaw_lit.training.module import MacawModule
from macaw_lit.training.strategies import values_of
from macaw_lit.types import IGNORE, Batch

FETCH = "train_dataloader_next"
"""What Lightning's profiler calls the wait for a batch, after the name of the loop."""


class Throughput(Callback):
    """Logs `speed/…` each time the trainer logs, over the optimizer steps since the last time and all processes.

    `samples_per_s` and `tokens_per_s`: samples, and their positions without padding, media slots included. `padding`:
    its share of all positions that the language model computes.
    `data_wait`: share of the time in which processes waited for a batch. `mfu`, if `peak_tflops` is given: model FLOPs
    by time and peak, by `flops_per_position`. Time is that on the clock, validation left out, saving included.

    A GPU may still be busy with the last step while its process waits: `data_wait` is the most that it may have idled.

    Args:
        peak_tflops: of one device in the precision that is trained in, in 10¹² FLOP per second, as its maker states it
            for dense matrices; None logs no `mfu`.

    Raises:
        ConfigError: `peak_tflops` is not positive.
    """

    figures = "speed/"  # what the names of all that it measures begin with

    def __init__(self, peak_tflops: int | float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ConfigError(f"peak_tflops={peak_tflops}; expected a positive number such as 312 of an A100, or null")
        self.peak_tflops = peak_tflops
        self.costs: dict[str, float] = {}
        self.waiting: _Waiting | None = None
        self.interval = 0
        self._validation = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        connected: Any = trainer  # its connectors assign the profiler and the interval of logging
        self.waiting = connected.profiler = _Waiting(connected.profiler)
        self.interval = connected.log_every_n_steps
        if self.peak_tflops is not None:
            self.costs = flops_per_position(_model(pl_module))
        self._logged = trainer.global_step
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.waiting is not None:
            self._begin += time.perf_counter() - self._validation

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._rows += len(batch.uids)
        self._laid += batch.input_ids.numel()
        self._positions.update(_positions(_model(pl_module), batch))
        step = trainer.global_step
        if self.interval and step % self.interval == 0 and step != self._logged:
            self._log(trainer, pl_module)
            self._logged = step
            self._restart()

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.waiting is not None
        tokens = float(self._positions["llm"])  # waits for the device
        flops = sum(cost * float(self._positions[part]) for part, cost in self.costs.items())
        seconds = time.perf_counter() - self._begin
        own = torch.tensor([self._rows, tokens, self._laid, self.waiting.seconds, flops], device=pl_module.device)
        summed: Any = trainer.strategy.reduce(own, reduce_op="sum")
        rows, tokens, laid, waited, flops = summed.tolist()
        pl_module.log("speed/samples_per_s", rows / seconds, batch_size=1)
        pl_module.log("speed/tokens_per_s", tokens / seconds, batch_size=1)
        pl_module.log("speed/padding", 1 - tokens / max(1, laid), batch_size=1)
        pl_module.log("speed/data_wait", waited / (seconds * trainer.world_size), batch_size=1)
        if self.peak_tflops is not None:
            pl_module.log("speed/mfu", flops / (seconds * trainer.world_size * self.peak_tflops * 1e12), batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        connected: Any = trainer
        if self.waiting is not None:
            connected.profiler, self.waiting = self.waiting.profiler, None

    def _restart(self) -> None:
        self._begin = time.perf_counter()
        self._rows = 0
        self._laid = 0
        self._positions: Counter[str] = Counter()
        if self.waiting is not None:
            self.waiting.seconds = 0.0


class _Waiting:
    """A profiler that also sums up how long its loop waited for batches; everything else is the profiler's own."""

    def __init__(self, profiler: Any) -> None:
        self.profiler = profiler
        self.seconds = 0.0
        self._begin = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.profiler, name)

    def start(self, action: str) -> None:
        self.profiler.start(action)
        if action.endswith(FETCH):
            self._begin = time.perf_counter()

    def stop(self, action: str) -> None:
        if action.endswith(FETCH):
            self.seconds += time.perf_counter() - self._begin
        self.profiler.stop(action)


def flops_per_position(model: Macaw) -> dict[str, float]:
    """FLOPs of forward and backward pass by part and position, by the usual count of two per weight and product.

    Of each weight: 2 for the forward pass; 2 more for the gradient that goes through it, if its part or one before it
    is trained; 2 more for its own, if it is trained itself. So 6·N of what is trained, 4·N of a frozen language model
    behind aligners that are trained, 2·N of a frozen encoder. `llm` is without its embeddings, which are looked up, and
    without its output matrix, `head`, which meets only the positions that bear loss. Left out are attention between
    positions and over the embedding table, layers over frames, and what activation checkpointing computes again.
    """
    encoders = {name: _trains(encoder) for name, encoder in model.encoders.items()}
    costs = {f"encoder {name}": _cost(model.encoders[name], trains) for name, trains in encoders.items()}
    for kind, modality in _modalities(model).items():
        trains = encoders[modality.encoder] or _trains(modality.aligner)
        costs[f"aligner {kind}"] = _cost(modality.aligner, trains)
    trains = _trains(model)
    if not isinstance(model.llm, HFCausalLM):
        return costs | {"llm": _cost(model.llm, trains)}
    embeddings, head = model.llm.model.get_input_embeddings(), model.llm.model.get_output_embeddings()
    shared = {id(weight) for part in (embeddings, head) for weight in part.parameters()}
    return costs | {"llm": _cost(model.llm, trains, shared), "head": _cost(head, trains)}


def _cost(part: nn.Module, trains: bool, without: Collection[int] = ()) -> float:
    weights = (weight for weight in part.parameters() if id(weight) not in without)
    return sum(values_of(weight) * (2.0 + 2.0 * trains + 2.0 * weight.requires_grad) for weight in weights)


def _trains(part: nn.Module) -> bool:
    return any(weight.requires_grad for weight in part.parameters())


def _positions(model: Macaw, batch: Batch) -> dict[str, Any]:
    """How many positions each part meets, as tensors where counting would wait for the device."""
    positions: Counter[str] = Counter()
    for kind, modality in _modalities(model).items():
        items, sequence = len(batch.media[kind].values), modality.frames
        encoder: Any = model.encoders[modality.encoder]
        positions[f"encoder {modality.encoder}"] += items * (sequence.frames if sequence else 1) * encoder.seq_len
        positions[f"aligner {kind}"] = items * modality.aligner.num_tokens
    head = 0 if batch.labels is None else (batch.labels[:, 1:] != IGNORE).sum()
    return {**positions, "llm": batch.attention_mask.sum(), "head": head}


def _modalities(model: Macaw) -> dict[str, Any]:
    return dict(model.modalities.items())


def _model(module: LightningModule) -> Macaw:
    assert isinstance(module, MacawModule)
    return module.model
