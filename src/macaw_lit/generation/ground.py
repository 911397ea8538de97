"""How much of a response stands in the texts that it was made from."""

from collections.abc import Iterable

from macaw_lit.generation.filters import words
from macaw_lit.generation.parse import Pair
from macaw_lit.generation.records import Record

_COMMON = """
a about all also am an and any are as at be because been being both but by can could did do does doing down each for
from further had has have he her here him his how i if in into is it its itself just like likely looks may might
more most no nor not of off on one only or other our out over own perhaps probably same seem seems she should so
some such than that the their them then there these they this those through to too under up us very was we were what
when where which while who whom whose why will with would yes you your picture image photo video clip scene sound
recording shows shown appears visible seen heard
"""
COMMON = frozenset(_COMMON.split())
"""Words that say nothing of one medium rather than another."""

ENDINGS = ("ing", "ed", "es", "s")


def groundedness(pair: Pair, record: Record) -> float | None:
    """Share of a response's content words that occur in the captions or the transcript; None where it has none.

    Words are compared without the endings of plurals and verbs. A low share is a sign and no proof: a synonym or a
    conclusion counts as missing, and a wrong claim made of the captions' own words as grounded.
    """
    said = {_stem(word) for word in words(pair.response) if word not in COMMON}
    given = {_stem(word) for text in (*record.texts, record.transcript) for word in words(text)}
    return len(said & given) / len(said) if said else None


def grounded(dialogue: Iterable[Pair], record: Record, least: float | None) -> bool:
    """No response of the dialogue is below `least`; with None, always."""
    shares = (groundedness(pair, record) for pair in dialogue)
    return least is None or all(share is None or share >= least for share in shares)


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word.rstrip("e")
