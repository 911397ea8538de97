"""Examples → Batch: padded or packed rows, and media of all rows stacked by kind."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from macaw_lit.types import IGNORE, Batch, Example, Media, MediaSpec

Side = Literal["left", "right"]


class Collator:
    """Pads rows to the longest and stacks their media; every kind of `specs` is in the batch, empty where absent.

    Args:
        pad_id: fills the padding of `input_ids`, which the attention mask hides.
        specs: kind → what its encoder wants.
        side: `right` to train, `left` to generate, so that all prompts end in the last column.
        row_length: None gives each example a row of its own. To train, the examples of a batch can share rows of at
            most so many positions, by `lay_out`.
    """

    def __init__(self, pad_id: int, specs: Mapping[str, MediaSpec], side: Side, row_length: int | None = None) -> None:
        self.pad_id = pad_id
        self.shapes = {kind: tuple(spec.shape) for kind, spec in specs.items()}
        self.side = side
        self.row_length = row_length

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """All examples have labels, or none has."""
        labelled = sum(example.labels is not None for example in examples)
        if 0 < labelled < len(examples):
            raise ValueError(f"{labelled} of {len(examples)} examples have labels; expected all or none")
        rows = [[example] for example in examples]
        if self.row_length is not None:
            places = lay_out([len(example.input_ids) for example in examples], self.row_length)
            rows = [[examples[place] for place in row] for row in places]
        return Batch(
            input_ids=self._pad(rows, lambda example: example.input_ids, self.pad_id),
            attention_mask=self._pad(rows, lambda example: torch.ones_like(example.input_ids), 0).bool(),
            labels=self._pad(rows, _labels, IGNORE) if labelled else None,
            media={kind: self._media(rows, kind) for kind in self.shapes},
            uids=[example.uid for example in examples],
            sources=[example.source for example in examples],
            truncated=tuple(example.source for example in examples if example.truncated),
            skipped=tuple(rejection for example in examples for rejection in example.skipped),
            epoch=max((example.epoch for example in examples), default=0),
            position_ids=None if self.row_length is None else self._pad(rows, _positions, 0),
        )

    def _media(self, rows: Sequence[Sequence[Example]], kind: str) -> Media:
        values = [example.media[kind] for row in rows for example in row if kind in example.media]
        empty = torch.zeros(0, *self.shapes[kind])
        slots = self._pad(rows, lambda e: e.slots.get(kind, torch.zeros_like(e.input_ids, dtype=torch.bool)), False)
        return Media(torch.cat(values) if values else empty, slots)

    def _pad(self, rows: Sequence[Sequence[Example]], of: Callable[[Example], Tensor], value: int) -> Tensor:
        """What each example has per position [t], laid out in rows of any lengths → [B,T]."""
        joined = [torch.cat([of(example) for example in row]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(joined, True, value, padding_side=self.side)


def _labels(example: Example) -> Tensor:
    """Without the first, since nothing of its sample stands before it that could predict it."""
    assert example.labels is not None
    return F.pad(example.labels[1:], (1, 0), value=IGNORE)


def _positions(example: Example) -> Tensor:
    return torch.arange(len(example.input_ids))


def lay_out(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Which samples share a row: those that make the fewest positions, padding included, in rows of at most `limit`.

    For each number of rows the longest sample that is left goes to the shortest row (Graham, 1969: the longest row is
    then at most 4/3 of what is possible). Of numbers that make equally many positions the greatest is taken, because
    attention is quadratic in a row's length. One sample a row is among the choices: padding never makes fewer.

    Raises:
        ValueError: a sample is longer than `limit`.
    """
    longest, total = max(lengths, default=0), sum(lengths)
    if longest > limit:
        raise ValueError(f"a sample of {longest} positions does not fit a row of {limit}")
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    best, fewest = [[place] for place in range(len(lengths))], len(lengths) * longest
    for count in range(len(lengths) - 1, 0, -1):
        if fewest == total or count * limit < total:
            break
        if count * longest < fewest:  # no row can be shorter than the longest sample
            rows = _dealt(lengths, order, count)
            length = max(sum(lengths[place] for place in row) for row in rows)
            if length <= limit and count * length < fewest:
                best, fewest = rows, count * length
    return best


def _dealt(lengths: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """The samples, in this order, each to the row that is shortest by then."""
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, row) for row in range(count)]
    for place in order:
        length, row = heap[0]
        rows[row].append(place)
        heapq.heapreplace(heap, (length + lengths[place], row))
    return rows
