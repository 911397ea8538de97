"""The demo world's text tasks in Alpaca's form: copy, reverse, last word, colour word, sums of two digits."""

import random
from collections.abc import Callable, Iterator, Sequence

from macaw_lit.data.demo.questions import TYPES
from macaw_lit.data.demo.scenes import COLOURS, deck

WORDS = (
    *("apple", "bird", "boat", "book", "bread", "chair", "cloud", "coat", "door", "fish"),
    *("flower", "fork", "garden", "glass", "hand", "hat", "horse", "house", "key", "lamp"),
    *("leaf", "milk", "moon", "mouse", "paper", "plate", "rain", "river", "road", "rock"),
    *("rose", "shoe", "snow", "spoon", "star", "stone", "sun", "table", "tree", "window"),
)
Task = tuple[str, str]
Row = dict[str, str]
"""A row of `alpaca_data.json` with its question type."""


def _last(rng: random.Random, n: int) -> Iterator[Task]:
    for answer in deck(rng, WORDS, _whole(n, len(WORDS))):
        others = rng.sample([word for word in WORDS if word != answer], rng.randint(2, 4))
        yield " ".join([*others, answer]), f"The last word is {answer}."


def _pick(rng: random.Random, n: int) -> Iterator[Task]:
    for answer in deck(rng, list(COLOURS), _whole(n, len(COLOURS))):
        words = [*rng.sample(WORDS, rng.randint(2, 4)), answer]
        rng.shuffle(words)
        yield " ".join(words), f"The colour word is {answer}."


def _copy(rng: random.Random, n: int) -> Iterator[Task]:
    for _ in range(n):
        words = " ".join(rng.sample(WORDS, rng.randint(2, 4)))
        yield words, words


def _reverse(rng: random.Random, n: int) -> Iterator[Task]:
    for _ in range(n):
        words = rng.sample(WORDS, rng.randint(2, 3))
        yield " ".join(words), " ".join(reversed(words))


TASKS: dict[str, Callable[[random.Random, int], Iterator[Task]]] = {
    "text.last": _last,
    "text.pick": _pick,
    "text.copy": _copy,
    "text.reverse": _reverse,
}


def text_rows(rng: random.Random, training: int, heldout: int) -> tuple[list[Row], list[Row]]:
    """About `training` rows over all types and `heldout` of each type; no input is in both.

    One sum of two digits in ten is held out, each in every phrasing: fewer rows than of the other types.
    """
    kept: list[Row] = []
    for kind, task in TASKS.items():
        kept += _rows(rng, kind, task(rng, heldout))
    pairs = [(a, b) for a in range(10) for b in range(10)]
    unseen = [rng.choice([pair for pair in pairs if sum(pair) == total]) for total in range(3, 16)]
    kept += _sums(unseen)[:heldout]
    taken = {row["input"] for row in kept} | {f"{a} + {b}" for a, b in unseen}
    share = training // (len(TASKS) + 1)
    rows: list[Row] = []
    for kind, task in TASKS.items():
        rows += [row for row in _rows(rng, kind, task(rng, share)) if row["input"] not in taken]
    sums = _sums([pair for pair in pairs if pair not in unseen])
    rows += deck(rng, sums, share)
    rng.shuffle(rows)
    return rows, kept


def _rows(rng: random.Random, kind: str, tasks: Iterator[Task]) -> list[Row]:
    return [_row(kind, rng.choice(TYPES[kind].phrasings), *task) for task in tasks]


def _whole(n: int, answers: int) -> int:
    """The largest multiple of `answers` up to `n`, so that each is as frequent as any other; `n` if there is none."""
    return n - n % answers or n


def _sums(pairs: Sequence[tuple[int, int]]) -> list[Row]:
    kind = "text.add"
    return [_row(kind, text, f"{a} + {b}", str(a + b)) for text in TYPES[kind].phrasings for a, b in pairs]


def _row(kind: str, instruction: str, given: str, output: str) -> Row:
    return {"instruction": instruction, "input": given, "output": output, "type": kind}
