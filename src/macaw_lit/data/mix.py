"""A seeded mixture of sources whose order is a pure function of seed, epoch and position."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from macaw_lit.errors import ConfigError


class Draw(NamedTuple):
    """What the sampler hands a data set: the epoch travels along because workers outlive epochs."""

    epoch: int
    row: int


class MixtureSampler(Sampler[Draw]):
    """Draws from concatenated sources, `counts` rows of each per epoch, without replacement.

    A source with more rows than its count shows a fresh part of itself each epoch and is reshuffled when too few
    are left. A smaller one is used whole. Ranks take turns position by position and get equally many; up to
    `world - 1` positions at the end of an epoch are left out.

    Args:
        lengths: rows of each source; indices run through them in this order.
        counts: rows of each source per epoch; None takes all.
        seed: non-negative.
        repeat: a source smaller than its count is passed through as many whole times as the count holds.
        rank: this process.
        world: processes that share the epoch.

    Raises:
        ConfigError: a count is not positive, or there are not as many counts as sources.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        counts: Sequence[int | None],
        seed: int = 0,
        repeat: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(lengths) != len(counts):
            raise ConfigError(f"{len(counts)} counts for {len(lengths)} sources; give one each, null for all rows")
        if bad := [count for count in counts if count is not None and (not isinstance(count, int) or count < 1)]:
            raise ConfigError(
                f"count={bad[0]}; expected a whole number from 1, or null for all rows; remove the source instead"
            )
        if seed < 0:
            raise ConfigError(f"seed={seed}; expected 0 or more")
        self.lengths = list(lengths)
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0
        self.position = 0  # where the epoch begins, counted over all ranks; not 0 after a resume only
        sizes = [length if count is None else count for length, count in zip(lengths, counts, strict=True)]
        self.passes = [size // max(length, 1) if repeat else 1 for length, size in zip(lengths, sizes, strict=True)]
        self.sizes = [min(length, size) for length, size in zip(lengths, sizes, strict=True)]
        total = sum(size * max(times, 1) for size, times in zip(self.sizes, self.passes, strict=True))
        self.total = total - total % world  # positions of an epoch, over all ranks

    def __len__(self) -> int:
        """Positions of a whole epoch on this rank, however far a resumed epoch has come."""
        return self.total // self.world

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        for index in self.order(epoch)[self.position + self.rank : self.total : self.world]:
            yield Draw(epoch, int(index))

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, unless it is the present one."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch, for all ranks together: int64 [positions]."""
        parts = []
        offset = 0
        for source, (length, size, times) in enumerate(zip(self.lengths, self.sizes, self.passes, strict=True)):
            part = self._part(source, length, size, epoch)
            parts.append(np.tile(part, max(times, 1)) + offset)
            offset += length
        indices = np.concatenate(parts)
        return np.random.default_rng([self.seed, 0, epoch]).permutation(indices)

    def _part(self, source: int, length: int, size: int, epoch: int) -> np.ndarray:
        if size == length:
            return np.arange(length)
        per_pass = length // size
        shuffled = np.random.default_rng([self.seed, 1 + source, epoch // per_pass]).permutation(length)
        return shuffled[epoch % per_pass * size :][:size]


def counts_of(shares: Mapping[str, tuple[int | None, int | float | None]], rows: int | None) -> list[int | None]:
    """Rows of each source per epoch, None for all; `shares` maps each to a count, a weight, or neither.

    Weights deal out `rows` in proportion, exactly: a remainder goes to the largest fractions (Hamilton's method).

    Raises:
        ConfigError: a source has both, some have weights and others not, a weight is not positive or too small for one
            row, or there are weights without rows or rows without weights.
    """
    if both := [name for name, (count, weight) in shares.items() if count is not None and weight is not None]:
        count, weight = shares[both[0]]
        raise ConfigError(f"source {both[0]!r} has count={count} and weight={weight}; give one of them, null the other")
    weights = {name: weight for name, (_, weight) in shares.items() if weight is not None}
    if not weights:
        if rows is not None:
            raise ConfigError(f"rows_per_epoch={rows} and no weights to deal them out by; give each source a weight")
        return [count for count, _ in shares.values()]
    if without := [name for name in shares if name not in weights]:
        raise ConfigError(
            f"{', '.join(weights)} have a weight, {', '.join(without)} none; give all sources one, or none"
        )
    if bad := [name for name, weight in weights.items() if not 0 < weight < math.inf]:
        raise ConfigError(f"source {bad[0]!r} has weight={weights[bad[0]]}; expected a positive number")
    if rows is None:
        raise ConfigError("weights without rows to deal out; set data.rows_per_epoch, or give counts instead")
    if not isinstance(rows, int):
        raise ConfigError(f"rows_per_epoch={rows}; expected a whole number, such as 100000")
    exact = {name: rows * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: math.floor(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: rows - sum(counts.values())]:
        counts[name] += 1
    if none := [name for name, count in counts.items() if count < 1]:
        raise ConfigError(
            f"source {none[0]!r} with weight={weights[none[0]]} gets none of rows_per_epoch={rows}; raise one"
        )
    return list(counts.values())
