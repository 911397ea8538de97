"""Configuration → plan: parameters by part, memory by cause, operations, hours, disk, and the largest batch."""

import importlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from macaw_lit.arguments import check
from macaw_lit.data.mix import counts_of
from macaw_lit.errors import ConfigError
from macaw_lit.llms.hf import check_sizes
from macaw_lit.model import Macaw
from macaw_lit.planning.memory import Counts, Layout, demand, layout_of, moments, offloaded, resident
from macaw_lit.planning.step import Row, Step, fullest_row, trace
from macaw_lit.settings import Range, check_range
from macaw_lit.training.blocks import blocks_of, recompute
from macaw_lit.training.nf4 import layers_in_4_bits

GIB = 2**30
_OPTIMIZERS = "macaw_lit.training.optim"
_RANGES: Mapping[str, Range] = {
    "gpu_gib": (float, 0.001, 10**6),
    "reserve_gib": (float, 0, 10**6),
    "peak_tflops": (float, 0.001, 10**6),
    "mfu": (float, 0.001, 1),
    "row.text": (int | None, 1, math.inf),
    "row.response": (int | None, 1, math.inf),
}


@dataclass(frozen=True)
class Plan:
    """What a run will take. Bytes are of one GPU where nothing else is said; unknown is None.

    Attributes:
        parts: part → values trained, values in all.
        memory: bytes by cause at `moment`, the greatest of a step.
        batch_size, fits: rows of a batch as configured, and the most that fit.
        host: bytes of main memory, of all processes together.
        flops: of an optimizer step over all processes, with those of activations that are computed again.
        steps, hours: of the whole run; `assumption` says at which speed.
        checkpoint, checkpoints, folder: bytes of one checkpoint, how many there are at most, bytes of the model folder.
    """

    strategy: str
    precision: str
    world: int
    parts: dict[str, tuple[int, int]]
    moment: str
    memory: dict[str, int]
    limit: int
    batch_size: int
    fits: int
    host: int
    row: Row
    rows_per_step: int
    flops: int
    steps: int | None
    hours: float | None
    assumption: str
    checkpoint: int
    checkpoints: int
    folder: int

    @property
    def needed(self) -> int:
        return sum(self.memory.values())

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "needed": self.needed, "tokens_per_row": self.row.tokens}


def make_plan(cfg: Mapping[str, Any]) -> Plan:
    """Plan a run by its configuration, resolved; nothing of its data or weights is read.

    Raises:
        ConfigError: a setting cannot be planned with.
    """
    _check_numbers(cfg)
    given = {name: value for name, value in cfg["model"]["llm"].items() if value is not None}  # a plan needs neither
    check({**cfg["model"], "llm": given}, "model")
    check(cfg["optim"], "optim")
    check_sizes(cfg["model"]["llm"].get("config"))
    layout, batch_size = layout_of(cfg["trainer"]), cfg["data"]["batch_size"]
    model = _blueprint(cfg["model"], cfg["unnamed_llm"])
    if cfg["data"].get("pack_rows"):  # makes no difference to rows that are all alike, as a plan's are
        model.llm.check_packing()
    base = sum(parameter.numel() for parameter in model.parameters())
    frozen = _adapted(model, cfg["model"]["adapt"])
    recompute(model, cfg["checkpointing"])
    model.train()
    for part in frozen:
        part.eval()
    counts = _count(model, cfg["optim"])
    row = fullest_row(model.specs(), cfg["data"]["preprocessor"]["max_length"], **cfg["row"])
    parts = {name: _with_4_bits(part) for name, part in _parts(model).items()}
    step = trace(model, row, batch_size, layout.dtype, layout.autocast)
    other = trace(model, row, 1 if batch_size > 1 else 2, layout.dtype, layout.autocast)
    reserve = int(cfg["reserve_gib"] * GIB) if layout.gpu else 0
    moment, memory = demand(layout, counts, step)
    rows = batch_size * layout.world * layout.accumulate
    flops, steps = step.flops * layout.world * layout.accumulate, _steps(cfg, layout)
    peak = layout.world * cfg["peak_tflops"] * 1e12
    size, optimizer = layout.kept.itemsize, resident(Layout("plain", 1, layout.kept), counts)["optimizer states"]
    masters = 4 * (counts.trained + counts.states)
    kept = (cfg.get("callbacks") or {}).get("checkpoint") or {}
    return Plan(
        strategy=layout.strategy + " with offload" * (layout.offload_optimizer or layout.offload_parameters),
        precision=str(cfg["trainer"]["precision"]),
        world=layout.world,
        parts=parts,
        moment=moment,
        memory={**{cause: size for cause, size in memory.items() if size}, **({"reserve": reserve} if reserve else {})},
        limit=int(cfg["gpu_gib"] * GIB),
        batch_size=batch_size,
        fits=_largest(layout, counts, (step, other), float(cfg["gpu_gib"] * GIB - reserve)),
        host=offloaded(layout, counts),
        row=row,
        rows_per_step=rows,
        flops=flops,
        steps=steps,
        hours=None if steps is None else steps * flops / (peak * cfg["mfu"]) / 3600,
        assumption=f"{cfg['mfu']:.0%} of {cfg['peak_tflops']} TFLOP/s ({cfg['gpu']}), every row as full as this one",
        checkpoint=counts.all * size
        + (masters if layout.zero else optimizer)
        + counts.quantised * (layout.world if layout.strategy == "zero3" else 1),  # there in the file of each process
        checkpoints=int(kept.get("keep") or 0) + bool(kept),  # the oldest goes once the newest is written
        folder=base * size,
    )


def _check_numbers(cfg: Mapping[str, Any]) -> None:
    """Refuse numbers that are none, or too small; what a training checks by its classes a plan does not import."""
    for key, allowed in _RANGES.items():
        check_range(cfg, key, allowed)
    for name, source in cfg["data"]["train"].items():
        if "count" in source:
            check_range(cfg, f"data.train.{name}.count", (int | None, 1, math.inf))
    limit = cfg["trainer"]["limit_train_batches"]
    batches = limit is None or (isinstance(limit, int) and limit >= 0)
    if not batches and not (isinstance(limit, float) and 0 <= limit <= 1):
        raise ConfigError(
            f"trainer.limit_train_batches={limit}: expected a number of batches, or a share from 0.0 to 1.0"
        )


def _blueprint(sizes: Mapping[str, Any], unnamed: Mapping[str, Any]) -> Macaw:
    """The model on meta. A language model without a tokenizer gets a small one, and the sizes of `unnamed`."""
    from macaw_lit.data.demo.tokenizer import train_tokenizer

    sizes = {**sizes, "llm": dict(sizes["llm"])}
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        if sizes["llm"]["tokenizer"] is None:
            train_tokenizer(["a b"], Path(folder))
            given = sizes["llm"].get("config")
            sizes["llm"] |= {"tokenizer": folder, "config": dict(unnamed) if given is None else given}
        return Macaw.from_config(sizes)


def _adapted(model: Macaw, settings: Mapping[str, Any]) -> list[nn.Module]:
    if all(mode == "full" for mode in settings.values()):
        return []
    from macaw_lit.training.adapt import adapt  # takes seconds, of which a plan has few

    with torch.device("meta"):
        return adapt(model, settings)


def _parts(model: Macaw) -> dict[str, nn.Module]:
    aligners = {f"{kind} aligner": modality for kind, modality in model.modalities.items()}
    return {**dict(model.encoders.items()), **aligners, "llm": model.llm}


def _sizes(part: nn.Module) -> tuple[int, int]:
    values = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
    return sum(size for size, trained in values if trained), sum(size for size, _ in values)


def _with_4_bits(part: nn.Module) -> tuple[int, int]:
    """Values trained, and values in all, whether they are parameters or not."""
    trained, everything = _sizes(part)
    return trained, everything + sum(layer.values for layer in layers_in_4_bits(part).values())


def _count(model: Macaw, optim: Mapping[str, Any]) -> Counts:
    trained, everything = _sizes(model)
    alone = [_sizes(unit)[1] for unit in (*blocks_of(model.llm), *model.encoders.values())]
    largest = max(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    quantised = sum(buffer.nbytes for layer in layers_in_4_bits(model).values() for buffer in layer.buffers())
    return Counts(everything, trained, _states(model, optim), largest, everything - sum(alone), max(alone), quantised)


def _states(model: Macaw, optim: Mapping[str, Any]) -> int:
    """Values that the optimizer will keep: two for each parameter's with AdamW, one with Muon."""
    settings = {name: value for name, value in optim.items() if not name.startswith("_")}
    module, _, name = str(optim["_target_"]).rpartition(".")
    if module != _OPTIMIZERS:
        raise ConfigError(f"optim={optim['_target_']}: no plan for it; expected one of {_OPTIMIZERS}")
    optimizer: Optimizer = getattr(importlib.import_module(module), name)(model, **settings)
    found = 0
    for each in getattr(optimizer, "parts", [optimizer]):
        values = sum(parameter.numel() for group in each.param_groups for parameter in group["params"])
        found += values * {AdamW: 2, Muon: 1}[type(each)]
    return found


def _steps(cfg: Mapping[str, Any], layout: Layout) -> int | None:
    """Optimizer steps of the run; None where only the data files know."""
    trainer, data = cfg["trainer"], cfg["data"]
    shares = {name: (source.get("count"), source.get("weight")) for name, source in data["train"].items()}
    counts = counts_of(shares, data.get("rows_per_epoch"))
    stop = trainer["max_steps"] if trainer["max_steps"] >= 0 else None
    if None in counts or trainer["max_epochs"] in (None, -1):
        return stop
    batches = math.ceil(sum(filter(None, counts)) // layout.world / data["batch_size"])
    limit = 1.0 if trainer["limit_train_batches"] is None else trainer["limit_train_batches"]
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    steps = math.ceil(batches / layout.accumulate) * trainer["max_epochs"]
    return steps if stop is None else min(stop, steps)


def _largest(layout: Layout, counts: Counts, steps: tuple[Step, Step], limit: float) -> int:
    """The most rows of a batch that fit at each moment of a step, by a line through two."""
    rows, others = (step.rows for step in steps)
    fit = math.inf
    for found, other in zip(*(moments(layout, counts, step).values() for step in steps), strict=True):
        need, less = sum(found.values()), sum(other.values())
        slope = (need - less) / (rows - others)
        if slope > 0:
            fit = min(fit, rows + (limit - need) / slope)
        elif need > limit:
            return 0
    return max(0, math.floor(fit))
