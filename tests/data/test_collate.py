"""Batches from examples: padding on either side, media stacked by kind, nothing lost."""

import pytest
import torch

from macaw_lit.data.collate import Collator
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
    rows = {"right": (real + [PAD] * padding, [True] * 3 + [False] * 2, real + [IGNORE] * padding)}
    rows["left"] = ([PAD] * padding + real, [False] * 2 + [True] * 3, [IGNORE] * padding + real)
    ids, mask, labels = rows[side]
    assert batch.input_ids.tolist() == [ids, [100, 101, 102, 103, 104]]
    assert batch.attention_mask.tolist() == [mask, [True] * 5]
    assert batch.labels is not None
    assert batch.labels.tolist() == [labels, [100, 101, 102, 103, 104]]
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
