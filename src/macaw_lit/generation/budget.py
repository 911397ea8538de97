"""Limits of what a run may spend, how fast it may ask, and how many requests may be under way."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from macaw_lit.errors import ConfigError


@dataclass(frozen=True)
class Price:
    """USD per million tokens, in and out."""

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.input < 1e6 and 0 <= self.output < 1e6):
            raise ConfigError(f"price.input={self.input} output={self.output}: expected USD per million tokens")

    def usd(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


class Budget:
    """What may be spent; reserved before a request is sent, so that no number of them at once can overshoot.

    Args:
        max_requests, max_tokens, max_usd: over all runs on one journal; None sets no limit.
    """

    def __init__(
        self, max_requests: int | None = None, max_tokens: int | None = None, max_usd: float | None = None
    ) -> None:
        self.limits = {"requests": max_requests, "tokens": max_tokens, "usd": max_usd}
        self.spent: dict[str, float] = {}
        self.clear()

    def clear(self) -> None:
        """Nothing is spent."""
        self.spent = {"requests": 0.0, "tokens": 0.0, "usd": 0.0}

    def refuses(self, tokens: int, usd: float, requests: int = 1) -> str | None:
        """Which limit more requests of at most so many tokens and USD could break; None if they may be sent."""
        wanted = {"requests": requests, "tokens": tokens, "usd": usd}
        for name, limit in self.limits.items():
            if limit is not None and self.spent[name] + wanted[name] > limit + 1e-12:
                used = f"{self.spent[name]:.6g} of max_{name}={limit} spent or reserved"
                return f"{used}, what comes next may take {wanted[name]:.6g}"
        return None

    def add(self, requests: int, tokens: int, usd: float) -> None:
        """Count a reservation, or with negative numbers what was reserved and not needed."""
        self.spent["requests"] += requests
        self.spent["tokens"] += tokens
        self.spent["usd"] = max(0.0, self.spent["usd"] + usd)


class Pace:
    """Starts of requests, evenly spaced: in any minute at most `per_minute` and one more, without bursts.

    Args:
        per_minute: requests, or tokens where requests weigh as many; None sets no pace.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if per_minute is not None and per_minute <= 0:
            raise ConfigError(f"per_minute={per_minute}: expected a number above 0, or null for no pace")
        self.per_minute, self.clock, self.sleep = per_minute, clock, sleep
        self.free = clock()

    async def take(self, weight: float = 1.0) -> None:
        """Wait for the place of a request that weighs so much."""
        start = max(self.clock(), self.free)
        self.free = start + (weight * 60 / self.per_minute if self.per_minute else 0.0)
        if (wait := start - self.clock()) > 0:
            await self.sleep(wait)

    def give_back(self, weight: float) -> None:
        """What was taken and not needed."""
        if self.per_minute:
            self.free -= weight * 60 / self.per_minute

    def hold(self, seconds: float) -> None:
        """Nothing starts before so many seconds from now."""
        self.free = max(self.free, self.clock() + seconds)


class Gate:
    """How many requests are under way at once: halved when the server says too many, one more after ten good ones."""

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ConfigError(f"concurrency={most}: expected a whole number of at least 1")
        self.most = self.limit = most
        self.inside = self.good = 0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.inside < self.limit)
            self.inside += 1

    async def __aexit__(self, *_: object) -> None:
        async with self._changed:
            self.inside -= 1
            self._changed.notify_all()

    def report(self, rate_limited: bool) -> None:
        """How the last request went."""
        self.good = 0 if rate_limited else self.good + 1
        if rate_limited:
            self.limit = max(1, self.limit // 2)
        elif self.good >= 10 and self.limit < self.most:
            self.good, self.limit = 0, self.limit + 1
