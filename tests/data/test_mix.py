"""The order of a mixture: complete, without doubles, the same for any number of ranks, and resumable."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macaw_lit.data.mix import MixtureSampler, counts_of
from macaw_lit.errors import ConfigError


def rows(sampler: MixtureSampler, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    return [draw.row for draw in sampler]


def test_all_rows_once_per_epoch_in_another_order_each():
    sampler = MixtureSampler([5, 3, 9], [None, None, None])
    first, second = rows(sampler, 0), rows(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(17))
    assert first != second
    assert first != sorted(first)
    assert len(sampler) == 17
    assert rows(sampler, 0) == first
    assert rows(MixtureSampler([5, 3, 9], [None, None, None], seed=1)) != first


def test_draws_carry_their_epoch():
    sampler = MixtureSampler([3], [None])
    sampler.set_epoch(7)
    assert {draw.epoch for draw in sampler} == {7}


def test_shares_hold_in_every_epoch_and_a_large_source_is_walked_through():
    sampler = MixtureSampler([100, 10], [30, 10])
    seen: Counter[int] = Counter()
    for epoch in range(3):
        drawn = rows(sampler, epoch)
        assert len(set(drawn)) == 40
        assert sum(row < 100 for row in drawn) == 30
        seen.update(row for row in drawn if row < 100)
    assert len(seen) == 90
    assert max(seen.values()) == 1
    assert len(set(rows(sampler, 3))) == 40


def test_a_small_source_is_used_whole_and_repeated_only_on_request_by_whole_passes():
    assert Counter(rows(MixtureSampler([4, 10], [11, 10]))) == dict.fromkeys(range(14), 1)
    repeated = Counter(rows(MixtureSampler([4, 10], [11, 10], repeat=True)))
    assert repeated == dict.fromkeys(range(4), 2) | dict.fromkeys(range(4, 14), 1)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.one_of(st.none(), st.integers(1, 60))), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 3),
    st.booleans(),
)
def test_ranks_partition_the_epoch(sources: list[tuple[int, int | None]], world: int, epoch: int, repeat: bool):
    lengths, counts = [length for length, _ in sources], [count for _, count in sources]
    whole = rows(MixtureSampler(lengths, counts, repeat=repeat), epoch)
    shares = [
        rows(MixtureSampler(lengths, counts, repeat=repeat, rank=rank, world=world), epoch) for rank in range(world)
    ]
    assert {len(share) for share in shares} == {len(whole) // world}
    interleaved = [share[position] for position in range(len(shares[0])) for share in shares]
    assert interleaved == whole[: len(whole) - len(whole) % world]
    if not repeat:
        assert len(set(whole)) == len(whole)


@pytest.mark.parametrize("world", [1, 2])
def test_an_epoch_can_begin_at_any_position_and_later_epochs_are_whole(world: int):
    def sampler(rank: int) -> MixtureSampler:
        return MixtureSampler([11, 7], [None, 5], rank=rank, world=world)

    for rank in range(world):
        whole, resumed = sampler(rank), sampler(rank)
        resumed.epoch, resumed.position = 2, 6
        assert rows(resumed, 2) == rows(whole, 2)[6 // world :]
        assert len(resumed) == len(whole) == 16 // world
        assert rows(resumed, 3) == rows(whole, 3)


@pytest.mark.parametrize(
    ("lengths", "counts", "seed"), [([3], [None, 1], 0), ([3], [0], 0), ([3], [-1], 0), ([3], [1], -1)]
)
def test_settings_that_cannot_work(lengths: list[int], counts: list[int | None], seed: int):
    with pytest.raises(ConfigError):
        MixtureSampler(lengths, counts, seed)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=5), st.integers(2000, 10_000))
def test_weights_deal_out_every_row_in_proportion(weights: list[float], rows: int):
    counts = counts_of({str(number): (None, weight) for number, weight in enumerate(weights)}, rows)
    assert sum(counts) == rows
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - rows * weight / sum(weights)) < 1, "rounded up or down, and never further"


def test_counts_stay_and_the_remainder_goes_to_the_largest_fractions():
    assert counts_of({"a": (7, None), "b": (None, None)}, None) == [7, None]
    assert counts_of({"a": (None, 1), "b": (None, 1), "c": (None, 2)}, 100) == [25, 25, 50]
    # Shares of 10 by 3 : 3 : 4.5 are 2.857, 2.857 and 4.286: the two rows that are left go to the first two.
    assert counts_of({"a": (None, 3), "b": (None, 3), "c": (None, 4.5)}, 10) == [3, 3, 4]


@pytest.mark.parametrize(
    ("shares", "rows", "said"),
    [
        ({"a": (5, 0.5)}, None, "source 'a' has count=5 and weight=0.5; give one of them"),
        ({"a": (None, 1.0), "b": (5, None)}, 10, "a have a weight, b none"),
        ({"a": (None, 1.0)}, None, "set data.rows_per_epoch"),
        ({"a": (3, None)}, 10, "rows_per_epoch=10 and no weights"),
        ({"a": (None, 0.0)}, 10, "weight=0.0; expected a positive number"),
        ({"a": (None, float("nan"))}, 10, "weight=nan; expected a positive number"),
        ({"a": (None, 1.0), "b": (None, 0.001)}, 10, "source 'b' with weight=0.001 gets none of rows_per_epoch=10"),
    ],
)
def test_shares_that_cannot_be_dealt_out(shares, rows, said: str):
    with pytest.raises(ConfigError) as error:
        counts_of(shares, rows)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
