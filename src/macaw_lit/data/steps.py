"""Batches that know how many response tokens the whole optimizer step has, before its first backward pass."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from macaw_lit.data.rows import Loader
from macaw_lit.types import Batch


class StepLoader(Loader):
    """A `Loader` that fetches all batches of an optimizer step at once and writes their sum into `step_tokens`.

    The mean over a step's tokens needs the divisor before the first gradient; a rank holds that many batches in memory.

    Args:
        batches_of_step: how many batches lie between the next one and the end of its optimizer step; asked once a step.
    """

    def __init__(self, *rows_and_collate: Any, batches_of_step: Callable[[], int], **settings: Any) -> None:
        super().__init__(*rows_and_collate, **settings)
        self.batches_of_step = batches_of_step

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        while step := list(islice(batches, self.batches_of_step())):
            tokens = sum(batch.response_tokens for batch in step)
            for batch in step:
                batch.step_tokens = tokens
                yield batch
