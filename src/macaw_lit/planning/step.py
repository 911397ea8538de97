"""One training step of the fullest batch on shadows: what it keeps, at which point, and how much it computes."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from macaw_lit.aligners.base import Aligner
from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw
from macaw_lit.planning.shadow import GRADIENTS, WEIGHTS, Ledger, Shadow, shadow
from macaw_lit.types import IGNORE, Batch, Media, MediaSpec


@dataclass(frozen=True)
class Row:
    """What every row of a step holds: one medium of each kind, and text.

    Attributes:
        media: kind → positions, its soft tokens and two delimiters.
        text: positions that are neither media nor BOS.
        response: how many of them bear loss.
    """

    media: Mapping[str, int]
    text: int
    response: int

    @property
    def tokens(self) -> int:
        return 1 + sum(self.media.values()) + self.text


@dataclass(frozen=True)
class Step:
    """Bytes by cause at the greatest moments of a step of `rows` rows, weights left out; and its operations.

    Attributes:
        forward: when most lives in the forward pass, without gradients.
        backward: when most lives from then on, gradients included as they come.
        sharded: the same without them, for strategies that deal them out at once.
    """

    rows: int
    forward: Mapping[str, int]
    backward: Mapping[str, int]
    sharded: Mapping[str, int]
    flops: int


def fullest_row(specs: Mapping[str, MediaSpec], max_length: int, text: int | None, response: int | None) -> Row:
    """The longest row that the preprocessor lets through, or one with so much text.

    Raises:
        ConfigError: media alone are longer than `max_length`, or the text or response is.
    """
    media = {kind: spec.num_tokens + 2 for kind, spec in specs.items()}
    room = max_length - 1 - sum(media.values())
    if room < 1:
        raise ConfigError(f"one medium of each kind takes {max_length - room} positions: raise max_length={max_length}")
    text = room if text is None else text
    response = text if response is None else response
    if not 1 <= text <= room:
        raise ConfigError(f"row.text={text}: max_length={max_length} leaves 1 to {room} tokens beside the media")
    if not 1 <= response <= text:
        raise ConfigError(f"row.response={response}: expected 1 to {text}, the tokens of the text")
    return Row(media, text, response)


def trace(model: Macaw, row: Row, rows: int, dtype: torch.dtype, autocast: torch.dtype | None = None) -> Step:
    """Run forward and backward of `rows` rows without memory.

    Args:
        model: on meta; its parameters are exchanged for shadows in place, so a second trace may take it again.
        dtype: of the weights.
        autocast: the type that `torch.autocast` lets matrix products run in.
    """
    ledger = Ledger()
    shadow(model, ledger, dtype)
    marks = _mark_causes(model, ledger)
    batch = _batch(model, row, rows, ledger)
    del ledger.live[WEIGHTS]
    ledger.watch("forward")
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        nll = model(batch).nll
    ledger.unwatch("forward")
    ledger.watch("backward")
    ledger.watch("sharded", without=(GRADIENTS,))
    ledger.cause = "logits"
    nll.backward()
    for mark in marks:
        mark.remove()
    return Step(rows, ledger.peaks["forward"], ledger.peaks["backward"], ledger.peaks["sharded"], ledger.flops)


def _batch(model: Macaw, row: Row, rows: int, ledger: Ledger) -> Batch:
    ids = torch.ones(rows, row.tokens, dtype=torch.long)
    mask = torch.ones(rows, row.tokens, dtype=torch.bool)
    mask[0, -1] = False  # a batch without padding would be given another attention
    labels = torch.full_like(ids, IGNORE)
    labels[:, row.tokens - row.response :] = 1
    media, first = {}, 2
    for kind, spec in model.specs().items():
        slots = torch.zeros(rows, row.tokens, dtype=torch.bool)
        slots[:, first : first + spec.num_tokens] = True
        first += row.media[kind]
        media[kind] = Media(Shadow(torch.empty(rows, *spec.shape, device="meta"), ledger), slots)
    return Batch(ids, mask, labels, media, [""] * rows)


def _mark_causes(model: Macaw, ledger: Ledger) -> list[Any]:
    """Hooks that tell the ledger what computes: the aligners, the output head with the loss, or anything else."""

    def put_down_to(cause: str) -> Any:
        def hook(*_: Any) -> None:
            ledger.cause = cause

        return hook

    def within(tensor: Any, cause: str) -> None:
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(put_down_to(cause))

    def enter(cause: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            ledger.cause = cause
            within(inputs[0], "activations")

        return hook

    def leave(module: Any, inputs: Any, output: Tensor) -> None:
        ledger.cause = "activations"
        within(output, "aligners")

    llm: Any = model.llm
    marks = [llm.model.get_output_embeddings().register_forward_pre_hook(enter("logits"))]
    for aligner in (part for part in model.modalities.modules() if isinstance(part, Aligner)):
        marks.append(aligner.register_forward_pre_hook(enter("aligners")))
        marks.append(aligner.register_forward_hook(leave))
    return marks
