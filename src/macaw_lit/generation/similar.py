"""Which questions of a whole corpus are one wording: MinHash finds who may be alike, and the sets themselves decide."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from macaw_lit.errors import ConfigError

BANDS, MOST_ROWS, RECALL = 32, 16, 0.98
"""Two sets of Jaccard J share one of B bands of r rows with probability 1 - (1 - Jʳ)ᴮ (Leskovec et al., Mining of
Massive Datasets, 3.4). The more rows, the fewer are compared in vain: as many as leave `RECALL` to pairs that are just
alike."""

LEAST = 0.6
"""Below it too many would be missed."""


class Wordings:
    """Tells, one question after the other, which earlier wording it repeats; equal sequences give equal answers.

    A question joins the first wording whose opening question shares at least `alike` of their word pairs (Jaccard), or
    opens a wording of its own. With None only questions of equal words are one wording.

    Raises:
        ConfigError: `alike` is out of range.
    """

    def __init__(self, alike: float | None = None) -> None:
        if alike is not None and not LEAST <= alike <= 1:
            raise ConfigError(f"alike={alike}: expected a share from {LEAST} to 1, or null")
        self.alike = alike
        self._equal: dict[tuple[str, ...], int] = {}
        self._openings: list[frozenset[str]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        shares = [1 - (1 - (alike or 1.0) ** rows) ** BANDS for rows in range(1, MOST_ROWS + 1)]
        self.rows = sum(share >= RECALL for share in shares)
        draw = np.random.Generator(np.random.PCG64(0))
        self._factors = draw.integers(0, 2**63, BANDS * self.rows, dtype=np.uint64) * 2 + 1  # odd: permutes 2⁶⁴
        self._offsets = draw.integers(0, 2**64, BANDS * self.rows, dtype=np.uint64)

    def place(self, question: Sequence[str]) -> int:
        """The number of the question's wording; questions are given as words in order."""
        words = tuple(question)
        if words not in self._equal:
            self._equal[words] = len(self._equal) if self.alike is None else self._nearest(words, self.alike)
        return self._equal[words]

    def _nearest(self, words: tuple[str, ...], alike: float) -> int:
        own = shingles(words)
        keys = list(enumerate(self._signature(own)))
        for other in sorted({other for key in keys for other in self._bands.get(key, ())}):
            if jaccard(own, self._openings[other]) >= alike:
                return other
        for key in keys:
            self._bands.setdefault(key, []).append(len(self._openings))
        self._openings.append(own)
        return len(self._openings) - 1

    def _signature(self, own: frozenset[str]) -> list[bytes]:
        """The bands of a set's MinHash: per hash function the least value of any member."""
        raw = [hashlib.blake2b(each.encode("utf-8", "replace"), digest_size=8).digest() for each in sorted(own)]
        values = np.frombuffer(b"".join(raw), dtype="<u8").astype(np.uint64)
        least = (values[:, None] * self._factors + self._offsets).min(axis=0)  # modulo 2⁶⁴
        return [band.tobytes() for band in least.reshape(BANDS, self.rows)]


def shingles(words: Sequence[str]) -> frozenset[str]:
    """Pairs of neighbouring words; of a single word, that word."""
    pairs = frozenset(f"{left} {right}" for left, right in pairwise(words))
    return pairs or frozenset(words or [""])


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """The share of what is in either that is in both."""
    return len(left & right) / len(left | right)
