"""Batches from examples: padding on either side, packed rows, media stacked by kind, nothing lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macaw_lit.data.collate import Collator, lay_out
from macaw_lit.types import IGNORE, Batch, Example, MediaSpec, Rejection

PAD = 9


def example(length: int, uid: str = "test/0", labelled: bool = True, **media: tuple[int, list[int]]) -> Example:
    """`length` positions; media kind → items and their slots; an item's values are all its slot's first position."""
    ids = torch.arange(100, 100 + length)
    slots = {}
    values = {}
    for kind, (items, positions) in media.items():
        slots[kind] = torch.zeros(length, dtype=torch.bool)
        slots[kind][positions] = True
        shape = {"image": (3, 4, 4), "video": (2, 3, 4, 4), "audio": (2, 5)}[kind]
        values[kind] = torch.stack([torch.full(shape, float(length + item)) for item in range(items)])
    return Example(ids, ids.clone() if labelled else None, values, slots, uid)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(specs: dict[str, MediaSpec], side: str):
    batch = Collator(PAD, specs, side)([example(3, "a"), example(5, "b")])
    real, padding = ([100, 101, 102], 2)
    learned = [IGNORE, *real[1:]]  # nothing could predict the first
    rows = {"right": (real + [PAD] * padding, [True] * 3 + [False] * 2, learned + [IGNORE] * padding)}
    rows["left"] = ([PAD] * padding + real, [False] * 2 + [True] * 3, [IGNORE] * padding + learned)
    ids, mask, labels = rows[side]
    assert batch.input_ids.tolist() == [ids, [100, 101, 102, 103, 104]]
    assert batch.attention_mask.tolist() == [mask, [True] * 5]
    assert batch.labels is not None
    assert batch.labels.tolist() == [labels, [IGNORE, 101, 102, 103, 104]]
    assert batch.uids == ["a", "b"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_media_of_all_rows_are_stacked_in_row_order_and_their_slots_move_with_the_padding(specs, side: str):
    rows = [example(8, image=(2, [1, 2, 3, 4, 5, 6])), example(4), example(6, image=(1, [1, 2, 3]), audio=(1, [4, 5]))]
    batch = Collator(PAD, specs, side)(rows)
    image = batch.media["image"]
    assert image.values[:, 0, 0, 0].tolist() == [8.0, 9.0, 6.0]
    assert int(image.slots.sum()) == 3 * specs["image"].num_tokens
    for number, row in enumerate(rows):
        for kind, slots in row.slots.items():
            found = batch.input_ids[number][batch.media[kind].slots[number]]
            assert found.tolist() == row.input_ids[slots].tolist()
    assert not batch.media["image"].slots[1].any()
    assert batch.media["audio"].values.shape == (1, 2, 5)


def test_a_batch_of_text_holds_every_kind_with_zero_rows(specs):
    batch = Collator(PAD, specs, "right")([example(3), example(5)])
    assert set(batch.media) == {"image", "video", "audio"}
    for kind, media in batch.media.items():
        assert media.values.shape == (0, *specs[kind].shape)
        assert media.values.dtype == torch.float32
        assert media.slots.shape == (2, 5)
        assert not media.slots.any()


def test_no_labels_when_predicting_and_no_mixture_of_both(specs):
    collate = Collator(PAD, specs, "left")
    assert collate([example(3, labelled=False)]).labels is None
    with pytest.raises(ValueError, match="1 of 2"):
        collate([example(3), example(3, labelled=False)])


def test_accounts_are_added_up(specs):
    first, second = example(3), example(4)
    first.skipped, second.skipped = (Rejection("missing", "a"),), (Rejection("empty", "b"), Rejection("empty", "c"))
    second.truncated = True
    first.source, second.source, first.epoch, second.epoch = "pictures", "texts", 2, 2
    batch = Collator(PAD, specs, "right")([first, second])
    assert [rejection.locator for rejection in batch.skipped] == ["a", "b", "c"]
    assert (batch.sources, batch.truncated, batch.epoch) == (["pictures", "texts"], ("texts",), 2)


def test_a_batch_moves_as_a_whole(specs):
    batch = Collator(PAD, specs, "right")([example(8, image=(1, [1, 2, 3]))])
    batch.skipped = (Rejection("missing", "a"),)
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    tensors = [moved.input_ids, moved.attention_mask, moved.labels, *vars(moved.media["image"]).values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.input_ids.device.type == "cpu"
    assert moved.skipped == batch.skipped
    assert moved.uids == batch.uids


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=24)


@settings(max_examples=60, deadline=None)  # a busy machine is no failure
@given(LENGTHS, st.integers(0, 200))
def test_every_sample_is_laid_out_once_in_rows_within_the_limit(lengths: list[int], room: int):
    limit = max(lengths) + room
    rows = lay_out(lengths, limit)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    filled = [sum(lengths[place] for place in row) for row in rows]
    assert all(0 < length <= limit for length in filled)
    assert len(rows) * max(filled) <= len(lengths) * max(lengths), "never more positions than padding makes"
    assert lay_out(list(lengths), limit) == rows


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_rows_are_not_longer_than_they_must_be(lengths: list[int]):
    """By Graham's bound no row is longer than 4/3 of the best, which is at least the mean and the longest."""
    for count in range(1, len(lengths) + 1):
        least = max(max(lengths), -(-sum(lengths) // count))
        rows = lay_out(lengths, 4 * least // 3 + 1)
        assert len(rows) * max(sum(lengths[place] for place in row) for row in rows) <= count * 4 * least / 3


@pytest.mark.parametrize(
    ("lengths", "limit", "rows"),
    [
        ([5, 3, 2, 4], 14, [[0, 2], [3, 1]]),  # two rows of 7 and one of 14 are full alike: the shorter ones
        ([5, 3, 2, 4], 7, [[0, 2], [3, 1]]),
        ([5, 3, 2, 4], 6, [[0], [3], [1, 2]]),
        ([4, 4, 4], 12, [[0], [1], [2]]),  # rows that are alike stay as they are
        ([7, 1, 1], 9, [[0, 1, 2]]),
        ([7, 1, 1], 8, [[0], [1, 2]]),
        ([3], 3, [[0]]),
        ([], 3, []),
    ],
)
def test_rows_by_hand(lengths, limit, rows):
    assert lay_out(lengths, limit) == rows


def test_a_sample_that_no_row_can_hold_is_refused():
    with pytest.raises(ValueError, match="a sample of 9 positions does not fit a row of 8"):
        lay_out([3, 9], 8)


MEDIA = st.fixed_dictionaries({}, optional={"image": st.integers(1, 2), "audio": st.just(1)})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(9, 30), MEDIA), min_size=1, max_size=12))
def test_samples_arrive_whole_with_their_media(rows: list[tuple[int, dict[str, int]]]):
    specs = {
        "image": MediaSpec("image", torch.from_numpy, 3, (3, 4, 4)),
        "audio": MediaSpec("audio", torch.from_numpy, 2, (2, 5)),
    }
    examples = []
    for number, (length, counts) in enumerate(rows):
        first, media = 1, {}
        for kind, items in counts.items():
            media[kind] = (items, list(range(first, first := first + items * specs[kind].num_tokens)))
        made = example(length, f"test/{number}", **media)
        made.input_ids, made.labels = made.input_ids + 1000 * number, made.labels + 1000 * number
        made.media = {kind: values + 100 * number for kind, values in made.media.items()}
        examples.append(made)
    batch = Collator(PAD, specs, "right", 64)(examples)
    assert batch.uids == [each.uid for each in examples], "as drawn"
    found = {}
    for sample in batch.samples.unique().tolist():
        here = batch.samples == sample
        if not batch.attention_mask[here].all():
            assert batch.input_ids[here].tolist() == [PAD]
            assert batch.labels[here].tolist() == [IGNORE]
            assert not any(media.slots[here].any() for media in batch.media.values())
            continue
        number = int(batch.input_ids[here][0]) // 1000
        found[number] = here
        (row,) = here.any(1).nonzero().flatten().tolist()
        assert here[row].nonzero().flatten().diff().eq(1).all(), "in one piece"
        wanted = examples[number]
        assert batch.input_ids[here].tolist() == wanted.input_ids.tolist()
        assert batch.position_ids[here].tolist() == list(range(len(wanted.input_ids)))
        assert batch.labels[here].tolist() == [IGNORE, *wanted.labels[1:].tolist()]
    assert sorted(found) == list(range(len(rows)))
    for kind, media in batch.media.items():
        # each slot gets the soft tokens of the item whose turn it is, in the order of the batch's positions
        items = media.values.flatten(1)[:, 0].repeat_interleave(specs[kind].num_tokens)
        filled = torch.zeros(batch.input_ids.shape).masked_scatter(media.slots, items)
        for number, here in found.items():
            own = examples[number]
            values = own.media.get(kind, torch.zeros(0, *specs[kind].shape))
            assert (
                filled[here & media.slots].tolist()
                == values.flatten(1)[:, 0].repeat_interleave(specs[kind].num_tokens).tolist()
            )
            assert torch.equal(media.slots[here], own.slots.get(kind, torch.zeros(len(own.input_ids)) > 0))


def test_packed_and_padded_batches_learn_the_same_tokens_and_keep_the_same_accounts(specs):
    examples = [example(length, f"test/{length}") for length in (9, 30, 12, 4)]
    examples[1].skipped, examples[2].truncated = (Rejection("missing", "a"),), True
    padded, packed = (Collator(PAD, specs, "right", length)(examples) for length in (None, 32))
    assert packed.input_ids.shape == (2, 30)
    assert padded.input_ids.shape == (4, 30)
    assert packed.response_tokens == padded.response_tokens == 8 + 29 + 11 + 3
    for name in ("uids", "sources", "truncated", "skipped", "epoch"):
        assert getattr(packed, name) == getattr(padded, name)
    assert padded.samples[:, 0].tolist() == padded.samples[:, -1].tolist() == [0, 1, 2, 3]
    assert packed.to("meta").position_ids.device.type == "meta"
    assert padded.to("meta").position_ids is None
