"""Bytes on each GPU, by cause: what a strategy keeps of a model, and what a step needs beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from macaw_lit.errors import ConfigError
from macaw_lit.planning.shadow import GRADIENTS, WEIGHTS
from macaw_lit.planning.step import Step

OPTIMIZER, COMMUNICATION, TEMPORARY = "optimizer states", "communication buffers", "the optimizer's temporaries"
QUANTISED = "weights in 4 bits"
_BUCKET = 200_000_000  # values; Lightning's reduce_bucket_size for DeepSpeed, of which overlap_comm makes two
_LIVE = 1_000_000_000  # values; DeepSpeed's stage3_max_live_parameters
_FP32 = 4
_PRECISIONS = {
    "32": (torch.float32, None),
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
}
_STAGES = {"deepspeed": 2, **{f"deepspeed_stage_{stage}": stage for stage in (1, 2, 3)}}


@dataclass(frozen=True)
class Counts:
    """Numbers of values of a model.

    Attributes:
        all, trained: of parameters.
        states: that the optimizer keeps, two for each trained one with AdamW.
        largest: of the largest trained parameter.
        root, block: of what FSDP2 gathers for the whole of a pass, and of the largest thing gathered by itself.
        quantised: bytes, and not values, of layers in 4 bits, which are no parameters.
    """

    all: int
    trained: int
    states: int
    largest: int
    root: int
    block: int
    quantised: int = 0


@dataclass(frozen=True)
class Layout:
    """How a Trainer deals a model out.

    Attributes:
        strategy: plain, ddp, zero1, zero2, zero3 or fsdp2.
        world: processes.
        dtype, autocast: of the weights at work, and of matrix products if these are cast.
        offload_optimizer, offload_parameters: into main memory.
        gpu: whether there is one.
        accumulate: batches of a step.
        masters: type of the weights that FSDP2 keeps, their gradients and states, if it is another than at work.
    """

    strategy: str
    world: int
    dtype: torch.dtype
    autocast: torch.dtype | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False
    gpu: bool = True
    accumulate: int = 1
    masters: torch.dtype | None = None

    @property
    def kept(self) -> torch.dtype:
        """The type of the weights from step to step."""
        return self.masters or self.dtype

    @property
    def zero(self) -> bool:
        return self.strategy.startswith("zero")


def layout_of(trainer: Mapping[str, Any]) -> Layout:
    """Read a Trainer's settings.

    Raises:
        ConfigError: strategy, precision or number of processes is not known.
    """
    given, precision = trainer.get("strategy") or "auto", str(trainer.get("precision") or "32-true")
    settings: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    name = str(settings["_target_"] if settings else given)
    if precision not in _PRECISIONS:
        raise ConfigError(f"trainer.precision={precision}: expected one of {', '.join(_PRECISIONS)}")
    dtype, autocast = _PRECISIONS[precision]
    masters: torch.dtype | None = None
    gpu = trainer.get("accelerator") != "cpu"
    world = _processes(trainer, gpu)
    stem, offload = name.removesuffix("_offload"), name.endswith("_offload")
    if name.endswith(".ZeRO") or stem in _STAGES:
        strategy = f"zero{settings.get('stage', 2) if settings else _STAGES[stem]}"
        dtype, autocast = autocast or dtype, None  # DeepSpeed casts the model itself
    elif name.endswith(".FSDP2"):
        strategy = "fsdp2"
        if precision == "16-mixed":
            raise ConfigError("trainer.precision=16-mixed with FSDP2, which has no loss scale: choose bf16-mixed")
        if autocast is not None:  # it casts what it gathers
            dtype, autocast, masters = autocast, None, dtype
    elif name == "ddp" or (name == "auto" and world > 1):
        strategy = "ddp"
    elif name == "auto":
        strategy = "plain"
    else:
        known = "auto, ddp, macaw_lit.training.strategies.ZeRO or FSDP2, or deepspeed_stage_1 to 3"
        raise ConfigError(f"trainer.strategy={name}: no plan for it; expected {known}: see conf/trainer/")
    return Layout(
        strategy,
        world,
        dtype,
        autocast,
        bool(settings.get("offload_optimizer")) or offload,
        bool(settings.get("offload_parameters")) or (offload and strategy == "zero3"),
        gpu,
        int(trainer.get("accumulate_grad_batches") or 1),
        masters,
    )


def _processes(trainer: Mapping[str, Any], gpu: bool) -> int:
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes") or 1
    if devices == "auto" and not gpu:
        devices = 1
    number = len(devices) if isinstance(devices, list | tuple) else int(devices) if str(devices).isdigit() else 0
    if number < 1:
        raise ConfigError(f"trainer.devices={devices}: how many is for the plan to know, such as trainer.devices=8")
    return number * int(nodes)


def resident(layout: Layout, counts: Counts) -> dict[str, int]:
    """Bytes by cause on each GPU from step to step; gradients as they are when all are there.

    ZeRO keeps fp32 masters beside its weights (Rajbhandari et al., 2020); all others let the optimizer work on the
    weights themselves. With an offloaded optimizer DeepSpeed keeps the dealt gradients with it.
    """
    size, world = layout.kept.itemsize, layout.world
    masters = counts.trained if layout.zero else 0
    state_size = _FP32 if layout.zero else size
    found = {
        WEIGHTS: counts.all * size,
        QUANTISED: counts.quantised,  # never dealt out, cast or offloaded
        GRADIENTS: counts.trained * size,
        OPTIMIZER: masters * _FP32 + counts.states * state_size,
        COMMUNICATION: 0,
    }
    dealt = {
        "zero1": (OPTIMIZER,),
        "zero2": (OPTIMIZER, GRADIENTS),
        "zero3": (OPTIMIZER, GRADIENTS, WEIGHTS),
        "fsdp2": (OPTIMIZER, GRADIENTS, WEIGHTS),
    }.get(layout.strategy, ())
    for cause in dealt:
        found[cause] = -(-found[cause] // world)
    if layout.strategy == "ddp":
        found[COMMUNICATION] = counts.trained * size  # a copy of the gradients, in buckets
    elif layout.strategy == "fsdp2":  # gathered weights with one block ahead, then their whole gradients
        found[COMMUNICATION] = layout.dtype.itemsize * (2 * counts.root + 4 * counts.block)
        if layout.masters is not None:  # a group's gradients become those of the masters when they are summed
            found[COMMUNICATION] += size * max(counts.root, counts.block)
    elif layout.zero:
        live = min(counts.all, _LIVE) if layout.strategy == "zero3" else 0
        found[COMMUNICATION] = size * (2 * min(counts.trained, _BUCKET) + live)
    if layout.offload_optimizer:
        found[OPTIMIZER] = 0
        found[GRADIENTS] = 0 if layout.strategy != "zero1" else found[GRADIENTS]
    if layout.offload_parameters:
        found[WEIGHTS] = 0
    return found


def offloaded(layout: Layout, counts: Counts) -> int:
    """Bytes that all processes together keep in main memory."""
    size = layout.dtype.itemsize
    optimizer = (counts.trained + counts.states) * _FP32 + counts.trained * size
    return (optimizer if layout.offload_optimizer else 0) + (counts.all * size if layout.offload_parameters else 0)


def demand(layout: Layout, counts: Counts, step: Step) -> tuple[str, dict[str, int]]:
    """The greatest moment of a step, and bytes by cause on each GPU then."""
    found = moments(layout, counts, step)
    return max(found.items(), key=lambda moment: sum(moment[1].values()))


def moments(layout: Layout, counts: Counts, step: Step) -> dict[str, dict[str, int]]:
    """Bytes by cause on each GPU at the moments of a step of which one is the greatest.

    Gradients go with their step, but for ZeRO's buffers of them; DDP and plain training have them come one by one.
    Accumulated ones are there throughout.
    """
    kept = resident(layout, counts)
    alone = layout.strategy in ("plain", "ddp")
    coming = alone and layout.accumulate == 1
    gone = layout.accumulate == 1 and not layout.zero
    return {
        "forward": {**_bare(step.forward), **(_bare(kept) if gone else kept)},
        "backward": {**kept, **step.backward} if coming else {**_bare(step.sharded), **kept},
        "optimizer step": {**kept, TEMPORARY: _temporaries(layout, counts)},
    }


def _bare(moment: Mapping[str, int]) -> dict[str, int]:
    return {cause: size for cause, size in moment.items() if cause != GRADIENTS}


def _temporaries(layout: Layout, counts: Counts) -> int:
    """AdamW takes roots of one parameter at a time on a CPU, of all at once on a GPU; ZeRO makes gradients fp32."""
    if layout.offload_optimizer:
        return 0
    if layout.zero:
        return 2 * _FP32 * counts.trained // layout.world
    if not layout.gpu:
        return 2 * counts.largest * layout.kept.itemsize
    return counts.trained * layout.kept.itemsize // (layout.world if layout.strategy == "fsdp2" else 1)
