"""The order of a mixture: complete, without doubles, the same for any number of ranks, and resumable."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macaw_lit.data.mix import MixtureSampler
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
