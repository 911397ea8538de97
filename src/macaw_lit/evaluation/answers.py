"""What an answer is, when it counts as right, and how sure a share of right answers is."""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef, Sample

Answer = Callable[[Sequence[Sample]], list[str]]
"""Answers question samples (whose last turn is the user's) in order; greedy: equal questions get equal answers."""

ARTICLES = frozenset({"a", "an", "the"})
_APOSTROPHES = re.compile(r"(?<=\w)['\u2019](?=\w)")
_NUMBER_MARKS = re.compile(r"(?<![\w.])-(?=\d)|(?<=\d)\.(?=\d)")  # the sign of -3 and the point of 3.5 carry the value


@dataclass(frozen=True)
class Answered:
    """A held-out sample with the model's answer to it. The sample's last turn is the truth."""

    sample: Sample
    answer: str

    @property
    def type(self) -> str:
        """The question type, or the source of a sample that has none."""
        return str(self.sample.meta.get("type", self.sample.source))

    @property
    def media(self) -> list[MediaRef]:
        """All media of all turns, in order."""
        return [ref for turn in self.sample.turns for ref in turn.media]

    @property
    def question(self) -> str:
        """The text of the last user turn, and the sample's input, if it has one, on a line of its own."""
        text = next((turn.text for turn in reversed(self.sample.turns) if turn.role == "user"), "")
        return f"{text}\n{given}" if (given := input_of(self.sample)) else text

    @property
    def truth(self) -> str:
        """The gold response."""
        return self.sample.turns[-1].text

    @property
    def right(self) -> bool:
        """Whether the answer counts as right."""
        return exact_match(self.answer, self.truth)


def input_of(sample: Sample) -> str:
    """Alpaca's input, which readers keep beside the turns: the only part of the meta data that the model reads."""
    return str(sample.meta.get("input") or "")


def question_of(sample: Sample) -> Sample:
    """The sample without its last turn, the gold response, and without `meta["answer"]`.

    Raises:
        DataError: the last turn is not the assistant's.
    """
    if not sample.turns or sample.turns[-1].role != "assistant":
        role = sample.turns[-1].role if sample.turns else "no turn"
        raise DataError(f"{sample.uid}: ends with {role}, expected the gold assistant response; evaluate labelled data")
    meta = {key: value for key, value in sample.meta.items() if key != "answer"}
    return replace(sample, turns=sample.turns[:-1], meta=meta)


def normalise(text: str) -> str:
    """The form in which answers are compared.

    NFKC, case folded, apostrophes within words dropped, other punctuation turned into spaces (not the sign of a number
    nor its decimal point), the articles a, an, the dropped, whitespace collapsed. A step that would leave nothing is
    left out: "A" stays "a", "?!" stays "?!", so that only an empty answer is empty.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    joined = _APOSTROPHES.sub("", folded)
    kept = {match.start() for match in _NUMBER_MARKS.finditer(joined)}
    spaced = "".join(
        " " if unicodedata.category(char).startswith("P") and place not in kept else char
        for place, char in enumerate(joined)
    )
    words = spaced.split()
    without_articles = [word for word in words if word not in ARTICLES]
    return " ".join(without_articles or words or folded.split())


def exact_match(answer: str, gold: str) -> bool:
    """Whether the whole answer equals the whole gold response after `normalise`."""
    return normalise(answer) == normalise(gold)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share; `z` 1.96 gives 95 %. With n = 0 nothing is known: (0, 1).

    Raises:
        ValueError: not 0 ≤ successes ≤ n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)
