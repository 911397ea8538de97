"""What is left out of generated data, by named rules, each counted."""

import re
from collections.abc import Callable, Iterable, Sequence

from macaw_lit.errors import ConfigError
from macaw_lit.generation.parse import Pair

LEAK = re.compile(
    r"\bcaptions?\b|\btranscripts?\b|\b(?:provided|given) (?:text|descriptions?)\b"
    r"|\bas an ai\b|\blanguage model\b|\bi (?:can(?:no|')t|am unable to|'m unable to) (?:see|hear|view)\b"
    r"|<(?:image|video|audio)>",
    re.IGNORECASE,
)
"""The model tells of what it was given instead of what is to be seen, or of itself; or writes a marker of a format."""

WORDS = re.compile(r"\w+(?:'\w+)?")
INSTRUCTION_WORDS = (2, 80)
RESPONSE_WORDS = (1, 250)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return WORDS.findall(text.lower().replace("\u2019", "'"))


def _length(pair: Pair) -> bool:
    asked, said = len(words(pair.instruction)), len(words(pair.response))
    low, high = INSTRUCTION_WORDS
    return not low <= asked <= high or (bool(pair.response) and not RESPONSE_WORDS[0] <= said <= RESPONSE_WORDS[1])


def _leak(pair: Pair) -> bool:
    return bool(LEAK.search(pair.instruction) or LEAK.search(pair.response))


def _echo(pair: Pair) -> bool:
    return words(pair.instruction) == words(pair.response)


def _upstream_v1(pair: Pair) -> bool:
    """The original's own rule, by substring: it also drops "another", "note" and "nothing"."""
    said = pair.response
    return "caption" in pair.instruction or "caption" in said or " no " in said or "not" in said


FILTERS: dict[str, Callable[[Pair], bool]] = {
    "length": _length,
    "leak": _leak,
    "echo": _echo,
    "upstream_v1": _upstream_v1,
}
"""Name → whether a pair is left out. A dialogue is left out with any of its pairs."""


def chosen(names: Iterable[str]) -> dict[str, Callable[[Pair], bool]]:
    """The filters of these names, in their order.

    Raises:
        ConfigError: an unknown name.
    """
    names = list(names)
    for name in names:
        if name not in FILTERS:
            raise ConfigError(f"filters: {name!r} is unknown, expected some of {', '.join(FILTERS)}")
    return {name: FILTERS[name] for name in names}


def rouge_l(left: Sequence[str], right: Sequence[str]) -> float:
    """ROUGE-L's F1 of two lists of words (Lin 2004): twice their longest common subsequence over all their words."""
    row = [0] * (len(right) + 1)
    for word in left:
        previous = 0
        for place, other in enumerate(right, 1):
            kept = row[place]
            row[place] = previous + 1 if word == other else max(row[place], row[place - 1])
            previous = kept
    total = len(left) + len(right)
    return 2 * row[-1] / total if total else 0.0
