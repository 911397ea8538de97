"""What is left out of generated data, by named rules, each counted."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence

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
_EVERYDAY = """
the of and to are what it that with for this there how which does he she they his her their at by from or not be has
have its who where when why yes you your many kind color colour
"""
EVERYDAY = frozenset(_EVERYDAY.split())
"""Frequent English words that are not also frequent in another language of the Latin script, as "in" and "is" are."""

COMMON, LATIN = 0.1, 0.8
"""Share of everyday words in longer texts, and of letters of the Latin script, below which a pair is not English."""

UNSAFE = re.compile(
    r"\b(?:porn\w*|nud(?:e|es|ity)|naked|topless|genitals?|erotic\w*|orgasm\w*|sexual\w*|rap(?:e|es|ed|ist)|molest\w*"
    r"|suicid\w*|self-harm\w*|kill (?:your|him|her)self|behead\w*|dismember\w*|tortur\w*|massacre\w*|genocid\w*|nazis?"
    r"|cocaine|heroin|meth(?:amphetamine)?|(?:make|build|making|building) (?:a |an )?(?:bomb|explosive)s?)\b",
    re.IGNORECASE,
)
"""Sexual acts and nakedness, self-harm, cruelty, hard drugs, bombs; no slurs are listed."""

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


def _english(pair: Pair) -> bool:
    """Another script, or eight words and more of which hardly any is an English one of every day.

    Short texts in another language of the Latin script pass, and so does English with foreign names.
    """
    text = f"{pair.instruction} {pair.response}"
    letters = [char for char in text if char.isalpha()]
    found = words(text)
    latin = sum(char < "\u0250" for char in letters)
    common = sum(word in EVERYDAY for word in found)
    return latin < LATIN * len(letters) or (len(found) >= 8 and common < COMMON * len(found))


def _unsafe(pair: Pair) -> bool:
    """A word of a short list; it catches words and not meanings, in English only, and is no moderation."""
    return bool(UNSAFE.search(f"{pair.instruction}\n{pair.response}"))


FILTERS: dict[str, Callable[[Pair], bool]] = {
    "length": _length,
    "leak": _leak,
    "echo": _echo,
    "english": _english,
    "unsafe": _unsafe,
    "upstream_v1": _upstream_v1,
}
"""Name → whether a pair is left out. A dialogue is left out with any of its pairs."""


def chosen(names: Iterable[str]) -> dict[str, Callable[[Pair], bool]]:
    """The filters of these names, in their order.

    Raises:
        ConfigError: an unknown name.
    """
    return {name: FILTERS[name] for name in known("filters", names, FILTERS)}


def known(key: str, names: Iterable[str], table: Collection[str]) -> list[str]:
    """The names that a setting lists, as they are.

    Raises:
        ConfigError: one of them is not in `table`.
    """
    names = list(names)
    for name in names:
        if name not in table:
            raise ConfigError(f"{key}: {name!r} is unknown, expected some of {', '.join(table)}")
    return names


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
