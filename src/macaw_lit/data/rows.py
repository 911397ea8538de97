"""Samples as a data set that stands in for unusable ones, and the loader of its batches."""

import itertools
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from macaw_lit.data.mix import Draw
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import DataError, MacawError, SampleError
from macaw_lit.types import Batch, Example, Rejection, Sample

MAX_REPLACEMENTS = 100  # unusable samples in a row before the data is declared broken


class Rows(Dataset[Example]):
    """Samples of all sources as examples; a sample that proves unusable is replaced by the next of its source.

    The stand-in carries what it replaced in `Example.skipped`, so that rows seen = rows used + rows skipped.

    Args:
        sources: the mixture's name of each source → its samples; indices run through them in this order.
        preprocess: makes an example of a sample.
    """

    def __init__(self, sources: Mapping[str, Sequence[Sample]], preprocess: Preprocessor) -> None:
        self.names = list(sources)
        self.sources = list(sources.values())
        self.preprocess = preprocess
        self.ends = list(itertools.accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, draw: Draw | int) -> Example:
        """A plain index, which Lightning draws when it overfits batches, stands for epoch 0.

        Raises:
            DataError: `MAX_REPLACEMENTS` samples in a row, or all of the source, are unusable.
        """
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        source = next(place for place, end in enumerate(self.ends) if index < end)
        samples, name = self.sources[source], self.names[source]
        first = index - (self.ends[source] - len(samples))
        skipped: list[Rejection] = []
        for step in range(min(MAX_REPLACEMENTS, len(samples))):
            sample = samples[(first + step) % len(samples)]
            try:
                example = self.preprocess(sample, epoch=epoch)
                return replace(example, skipped=tuple(skipped), source=name, epoch=epoch)
            except SampleError as error:
                skipped.append(Rejection(error.cause, sample.uid, str(error), name))
        causes = in_words(Counter(rejection.cause for rejection in skipped))
        raise DataError(
            f"{len(skipped)} samples in a row of {samples[first].source} are unusable ({causes}), the last one: "
            f"{skipped[-1].detail}; check the media folder and max_length"
        )

    def __getitems__(self, draws: Sequence[Draw | int]) -> list[Example] | MacawError:
        """The rows of a batch. An error is handed on as a value: one raised in a worker arrives as a traceback."""
        try:
            return [self[draw] for draw in draws]
        except MacawError as error:
            return error


class Loader(DataLoader[Example]):
    """Batches of `Rows`, in workers that outlive epochs; raises the errors that workers hand on.

    The state methods tell Lightning that resuming within an epoch is safe; the place is in the data module's state.
    """

    def __init__(
        self, rows: Rows, collate: Callable[[list[Example]], Batch], num_workers: int = 0, **settings: Any
    ) -> None:
        super().__init__(
            rows,
            collate_fn=partial(_collate, collate),
            num_workers=num_workers,
            worker_init_fn=_on_its_own,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # or each pass would draw its workers' seed from training's generator
            **settings,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, MacawError):
                try:
                    raise batch
                finally:
                    del batch  # the cycle through its traceback would make the workers' end take five seconds
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def _collate(collate: Callable[[list[Example]], Batch], rows: list[Example] | MacawError) -> Batch | MacawError:
    return rows if isinstance(rows, MacawError) else collate(rows)


def in_words(causes: Counter[str]) -> str:
    """Causes and their counts, the most frequent first."""
    return ", ".join(f"{cause} {count}" for cause, count in causes.most_common())


def _on_its_own(worker: int) -> None:
    torch.set_num_threads(1)  # workers share the cores; more threads each only get in one another's way
    # What is sent to all processes of a run must not reach those that the trainer needs to come to a stop.
    os.setpgrp()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
