"""Rows about one medium into dialogues, so that the medium is encoded, and the prompt's header read, once for all."""

import itertools
import random
from collections.abc import Iterable, Iterator

from macaw_lit.errors import ConfigError
from macaw_lit.types import MediaRef, Rejection, Sample, Turn


def join(rows: Iterable[Sample | Rejection], turns: int) -> Iterator[Sample | Rejection]:
    """Joins rows that follow each other on the same media into dialogues of at most `turns` questions.

    The questions of a medium are shuffled first, seeded by the name of its first row, so that no kind of question
    always opens a dialogue; they are dealt to as few dialogues as will hold them, as evenly as can be. A dialogue is
    named after its first row; `meta["rows"]` names all of them.

    Raises:
        ConfigError: `turns` is no number from 1.
    """
    if turns < 1:
        raise ConfigError(f"turns={turns}; expected at least 1, a question by itself")
    for media, group in itertools.groupby(rows, _media):
        if not media:
            yield from group
            continue
        samples = [row for row in group if isinstance(row, Sample)]
        random.Random(samples[0].uid).shuffle(samples)
        dialogues = -(-len(samples) // turns)
        for part in (samples[start::dialogues] for start in range(dialogues)):
            yield part[0] if len(part) == 1 else _joined(part)


def _media(row: Sample | Rejection) -> tuple[MediaRef, ...]:
    """What a row may be joined by; nothing where joining would lose an input, media of later turns or a question."""
    if isinstance(row, Rejection) or row.meta.get("input") or any(turn.media for turn in row.turns[1:]):
        return ()
    if row.turns[0].spoken:  # another one on the same media is the same question
        return ()
    return row.turns[0].media


def _joined(samples: list[Sample]) -> Sample:
    first, *others = samples
    later = (Turn(turn.role, turn.text) for sample in others for turn in sample.turns)
    meta = {"rows": [sample.uid for sample in samples]}
    return Sample((*first.turns, *later), first.uid, first.source, meta)
