import asyncio

import pytest

from macaw_lit.errors import ConfigError
from macaw_lit.generation.budget import Budget, Gate, Pace, Price


class Clock:
    """A clock that only sleeping moves on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def starts(pace, clock, weights):
    async def go():
        found = []
        for weight in weights:
            await pace.take(weight)
            found.append(clock.now)
        return found

    return asyncio.run(go())


def test_starts_are_evenly_spaced_whatever_they_weigh():
    clock = Clock()
    assert starts(Pace(60.0, clock, clock.sleep), clock, [1.0] * 4) == [0, 1, 2, 3]
    clock = Clock()
    assert starts(Pace(600.0, clock, clock.sleep), clock, [100.0, 50.0, 1.0]) == [0, 10, 15]
    clock = Clock()
    assert starts(Pace(None, clock, clock.sleep), clock, [1e9] * 3) == [0, 0, 0]


def test_what_was_not_needed_is_given_back_and_a_hold_holds_all():
    clock = Clock()
    pace = Pace(60.0, clock, clock.sleep)
    assert starts(pace, clock, [10.0]) == [0]
    pace.give_back(8.0)
    assert starts(pace, clock, [1.0]) == [2]
    pace.hold(30.0)
    assert starts(pace, clock, [1.0]) == [32]
    with pytest.raises(ConfigError, match="per_minute=0.0"):
        Pace(0.0)


def test_the_gate_narrows_at_once_and_widens_slowly():
    async def go():
        gate = Gate(8)
        gate.report(rate_limited=True)
        gate.report(rate_limited=True)
        assert gate.limit == 2
        for _ in range(10):
            gate.report(rate_limited=False)
        return gate.limit

    assert asyncio.run(go()) == 3
    with pytest.raises(ConfigError, match="concurrency=0"):
        Gate(0)


def test_the_budget_counts_reservations():
    budget = Budget(max_requests=2, max_tokens=100, max_usd=1.0)
    assert budget.refuses(100, 1.0) is None
    budget.add(1, 60, 0.5)
    assert "max_tokens=100" in budget.refuses(41, 0.1)
    assert "max_usd=1.0" in budget.refuses(1, 0.6)
    budget.add(0, -30, 0.0)
    assert budget.refuses(41, 0.1) is None
    budget.add(1, 0, 0.0)
    assert "max_requests=2" in budget.refuses(0, 0.0)


def test_prices():
    assert Price(0.5, 1.5).usd(2_000_000, 1_000_000) == 2.5
    with pytest.raises(ConfigError, match="per million"):
        Price(-1.0, 0.0)
