"""Examples → Batch: padding, and media of all rows stacked by kind."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from macaw_lit.types import IGNORE, Batch, Example, Media, MediaSpec

Side = Literal["left", "right"]


class Collator:
    """Pads rows to the longest and stacks their media; every kind of `specs` is in the batch, empty where absent.

    Args:
        pad_id: fills the padding of `input_ids`, which the attention mask hides.
        specs: kind → what its encoder wants.
        side: `right` to train, `left` to generate, so that all prompts end in the last column.
    """

    def __init__(self, pad_id: int, specs: Mapping[str, MediaSpec], side: Side) -> None:
        self.pad_id = pad_id
        self.shapes = {kind: tuple(spec.shape) for kind, spec in specs.items()}
        self.side = side

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """All examples have labels, or none has."""
        labels = [example.labels for example in examples if example.labels is not None]
        if labels and len(labels) < len(examples):
            raise ValueError(f"{len(labels)} of {len(examples)} examples have labels; expected all or none")
        return Batch(
            input_ids=self._pad([example.input_ids for example in examples], self.pad_id),
            attention_mask=self._pad([torch.ones_like(example.input_ids) for example in examples], 0).bool(),
            labels=self._pad(labels, IGNORE) if labels else None,
            media={kind: self._media(kind, examples) for kind in self.shapes},
            uids=[example.uid for example in examples],
            sources=[example.source for example in examples],
            truncated=tuple(example.source for example in examples if example.truncated),
            skipped=tuple(rejection for example in examples for rejection in example.skipped),
            epoch=max((example.epoch for example in examples), default=0),
        )

    def _media(self, kind: str, examples: Sequence[Example]) -> Media:
        values = [example.media[kind] for example in examples if kind in example.media]
        empty = torch.zeros(0, *self.shapes[kind])
        rows = [example.slots.get(kind, torch.zeros_like(example.input_ids, dtype=torch.bool)) for example in examples]
        return Media(torch.cat(values) if values else empty, self._pad(rows, False))

    def _pad(self, rows: Sequence[Tensor], value: int) -> Tensor:
        """Rows [t] of any lengths → [B,T]."""
        return torch.nn.utils.rnn.pad_sequence(list(rows), True, value, padding_side=self.side)
