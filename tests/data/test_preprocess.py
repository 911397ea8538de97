"""Ids, labels and slots of rows built from real files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import ConfigError, MediaError, SampleError
from macaw_lit.types import IGNORE, MediaRef, MediaSpec, Sample, Turn

CONTROL = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "</image>", "<video>", "</video>", "<audio>", "</audio>"]
HOSTILE = [
    *CONTROL,
    *(f"{token}{token}" for token in CONTROL),
    *("<|im_end|>", "<|im_start|>system", "[INST]", "[/INST]", "<<SYS>>", "<|endoftext|>", "[PAD]", "<|eot_id|>"),
    *("### Response:", "\n\n### Instruction:\n", "<im\u200bage>", "＜image＞", "<image", "image>", "\x00", "\u202e"),
    *(" <image> ", "<image>\n<image>", "a</s>b", "<s>a</s>", "<IMAGE>", "❤️</video>", "圖</audio>"),
]


def sample(*turns: tuple, uid: str = "test/0", **meta: object) -> Sample:
    return Sample(tuple(Turn(*turn) for turn in turns), uid, "test", meta)


def media(kind: str, *paths: Path) -> tuple[MediaRef, ...]:
    return tuple(MediaRef(kind, path) for path in paths)


@pytest.fixture
def preprocess(tokenizer: PreTrainedTokenizerFast, specs: dict[str, MediaSpec]) -> Preprocessor:
    return Preprocessor(tokenizer, specs)


def test_prefix_layout_of_a_row(preprocess: Preprocessor, tokenizer, picture, tone, clip, tmp_path):
    movie = clip(tmp_path / "movie.mp4", [np.full((32, 32, 3), 100, np.uint8)] * 10)
    row = sample(
        ("user", "A?", media("audio", tone(0.5)) + media("image", picture(50), picture(200))),
        ("assistant", "a"),
        ("user", "B?", media("video", movie) + media("image", picture(100))),
        ("assistant", "b"),
        uid="test/layout",
    )
    example = preprocess(row)
    tokens = tokenizer.convert_ids_to_tokens(example.input_ids.tolist())
    image = ["<image>", "<pad>", "<pad>", "<pad>", "</image>"]
    blocks = [*image * 3, "<video>", *["<pad>"] * 4, "</video>", "<audio>", "<pad>", "<pad>", "</audio>"]
    assert tokens[: 1 + len(blocks)] == ["<s>", *blocks]
    text = tokenizer.decode(example.input_ids[1 + len(blocks) :])
    header, rest = text.split("\n\n", 1)
    assert header.startswith("Below is an instruction")
    assert rest == "### Instruction:\nA?\n\n### Response:\na</s>\n\n### Instruction:\nB?\n\n### Response:\nb</s>"
    assert {kind: int(slots.sum()) for kind, slots in example.slots.items()} == {"image": 9, "video": 4, "audio": 2}
    for kind, slots in example.slots.items():
        assert set(example.input_ids[slots].tolist()) == {tokenizer.pad_token_id}, kind
    assert not torch.stack(list(example.slots.values())).sum(0).gt(1).any()
    assert [round(float(value.mean() * 255)) for value in example.media["image"]] == [50, 200, 100]
    assert example.media["video"].shape == (1, 2, 3, 4, 4)
    assert float(example.media["audio"].max()) == pytest.approx(0.5, abs=0.01)
    assert example.uid == "test/layout"
    assert not example.truncated


def test_order_of_blocks_is_configurable(tokenizer, specs, picture, tone):
    row = sample(("user", "A?", media("image", picture(9)) + media("audio", tone(0.1))), ("assistant", "a"))
    example = Preprocessor(tokenizer, specs, order=("audio", "image", "video"))(row)
    assert example.slots["audio"].nonzero().max() < example.slots["image"].nonzero().min()


def test_inline_layout_puts_blocks_before_the_text_of_their_turn(tokenizer, specs, picture):
    row = sample(
        ("user", "A?", media("image", picture(50))),
        ("assistant", "a"),
        ("user", "B?", media("image", picture(200))),
        ("assistant", "b"),
    )
    example = Preprocessor(tokenizer, specs, layout="inline")(row)
    text = tokenizer.decode(example.input_ids)
    block = "<image><pad><pad><pad></image>"
    assert f"### Instruction:\n{block}A?" in text
    assert f"### Instruction:\n{block}B?" in text
    assert [round(float(value.mean() * 255)) for value in example.media["image"]] == [50, 200]


def test_text_without_media_is_tokenised_as_one_whatever_the_layout(tokenizer, specs):
    row = sample(("user", "What colour?"), ("assistant", "red"))
    prefix, inline = (Preprocessor(tokenizer, specs, layout=layout)(row) for layout in ("prefix", "inline"))
    assert prefix.input_ids.tolist() == inline.input_ids.tolist()
    whole = tokenizer(tokenizer.decode(prefix.input_ids[1:][prefix.labels[1:] == IGNORE]), add_special_tokens=False)
    assert prefix.input_ids[prefix.labels == IGNORE].tolist() == [tokenizer.bos_token_id, *whole["input_ids"]]
    assert prefix.media == {}
    assert prefix.slots == {}


def test_labels_are_the_responses_with_eos(preprocess: Preprocessor, tokenizer, picture):
    row = sample(("user", "A?", media("image", picture(5))), ("assistant", "a b"), ("user", "B?"), ("assistant", "ç圖"))
    example = preprocess(row)
    assert tokenizer.decode(example.labels[example.labels != IGNORE]) == "\na b</s>\nç圖</s>"
    assert torch.equal(example.labels[example.labels != IGNORE], example.input_ids[example.labels != IGNORE])
    for slots in example.slots.values():
        assert (example.labels[slots] == IGNORE).all()


def test_prediction_is_the_training_row_up_to_the_response(preprocess: Preprocessor, picture):
    row = sample(("user", "A?", media("image", picture(5))), ("assistant", "a"))
    trained, asked = preprocess(row), preprocess(row, predict=True)
    assert asked.labels is None
    assert asked.input_ids.tolist() == trained.input_ids[trained.labels == IGNORE].tolist()
    assert torch.equal(asked.media["image"], trained.media["image"])


@pytest.mark.parametrize("hostile", HOSTILE)
def test_control_strings_stay_text_wherever_they_stand(preprocess: Preprocessor, tokenizer, picture, hostile: str):
    refs = media("image", picture(5))
    turns = (("system", hostile), ("user", f"q{hostile}", refs), ("assistant", hostile))
    example = preprocess(sample(*turns, input=hostile))
    plain = preprocess(sample(("system", ""), ("user", "q", refs), ("assistant", "")))
    for token in CONTROL:
        control = tokenizer.convert_tokens_to_ids(token)
        assert example.input_ids.tolist().count(control) == plain.input_ids.tolist().count(control), token
    assert int(example.slots["image"].sum()) == 3
    assert tokenizer.decode(example.labels[example.labels != IGNORE]) == f"\n{hostile}</s>"
    heading = f"\n\n### Instruction:\nq{hostile}\n\n### Input:\n{hostile}\n\n### Response:"
    assert hostile + heading in tokenizer.decode(example.input_ids)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text()), min_size=1, max_size=4).map("".join))
def test_any_text_round_trips_without_control_ids(tokenizer, text: str):
    preprocess = Preprocessor(tokenizer, {}, max_length=10_000)
    example = preprocess(sample(("user", "q" + text), ("assistant", text)))
    answer = example.input_ids[example.labels != IGNORE]
    assert tokenizer.decode(answer) == f"\n{text}</s>"
    counts = [example.input_ids.tolist().count(tokenizer.convert_tokens_to_ids(token)) for token in CONTROL]
    assert counts == [0, 1, 1] + [0] * 7


def test_a_long_response_is_cut_on_the_right_and_has_no_eos(tokenizer, specs, picture):
    row = sample(("user", "A?", media("image", picture(5))), ("assistant", "x" * 500))
    prompt = len(Preprocessor(tokenizer, specs)(row, predict=True).input_ids)
    example = Preprocessor(tokenizer, specs, max_length=prompt + 4)(row)
    assert example.truncated
    assert len(example.input_ids) == prompt + 4
    assert tokenizer.decode(example.labels[example.labels != IGNORE]) == "\nxxx"
    assert int(example.slots["image"].sum()) == 3


def test_a_response_that_just_fits_is_whole(tokenizer, specs):
    row = sample(("user", "A?"), ("assistant", "abc"))
    whole = Preprocessor(tokenizer, specs)(row)
    again = Preprocessor(tokenizer, specs, max_length=len(whole.input_ids))(row)
    assert again.input_ids.tolist() == whole.input_ids.tolist()
    assert not again.truncated
    assert Preprocessor(tokenizer, specs, max_length=len(whole.input_ids) - 1)(row).truncated


def test_a_dialogue_cut_inside_a_later_question_ends_with_the_response_before(tokenizer, specs):
    row = sample(("user", "A?"), ("assistant", "a"), ("user", "B?" * 50), ("assistant", "b"))
    short = Preprocessor(tokenizer, specs)(sample(("user", "A?"), ("assistant", "a")))
    example = Preprocessor(tokenizer, specs, max_length=len(short.input_ids) + 10)(row)
    assert example.truncated
    assert example.input_ids.tolist() == short.input_ids.tolist()


@pytest.mark.parametrize("predict", [False, True])
def test_a_prompt_that_leaves_no_room_is_rejected_before_its_media_are_read(tokenizer, specs, predict: bool):
    row = sample(("user", "A?", media("image", Path("nowhere.jpg"))), ("assistant", "a"))
    with pytest.raises(SampleError, match="max_length") as caught:
        Preprocessor(tokenizer, specs, max_length=30)(row, predict)
    assert caught.value.cause == "text_too_long"


def test_media_of_a_later_turn_are_never_cut(tokenizer, specs, picture):
    row = sample(
        ("user", "A?"), ("assistant", "x" * 50), ("user", "B?", media("image", picture(5))), ("assistant", "b")
    )
    start = len(Preprocessor(tokenizer, specs)(sample(("user", "A?")), predict=True).input_ids)
    with pytest.raises(SampleError) as caught:
        Preprocessor(tokenizer, specs, layout="inline", max_length=start + 20)(row)
    assert caught.value.cause == "text_too_long"
    assert int(Preprocessor(tokenizer, specs, max_length=start + 20)(row).slots["image"].sum()) == 3


def test_huge_texts_are_answered_at_once(preprocess: Preprocessor):
    huge = "spam and eggs " * 1_000_000
    with pytest.raises(SampleError, match="characters"):
        preprocess(sample(("user", huge), ("assistant", "a")))
    example = preprocess(sample(("user", "A?"), ("assistant", huge)))
    assert example.truncated
    assert len(example.input_ids) == 512


def test_unusable_text_and_media_name_their_cause(preprocess: Preprocessor, tokenizer, specs, picture, tmp_path: Path):
    with pytest.raises(SampleError) as caught:
        preprocess(sample(("user", "\ud83d"), ("assistant", "a")))
    assert caught.value.cause == "bad_text"
    with pytest.raises(MediaError) as caught:
        preprocess(sample(("user", "A?", media("image", tmp_path / "gone.jpg")), ("assistant", "a")))
    assert caught.value.cause == "missing"
    with pytest.raises(MediaError, match="audio") as caught:
        Preprocessor(tokenizer, {"audio": specs["audio"]})(sample(("user", "A?", media("image", picture(1)))), True)
    assert caught.value.cause == "no_encoder"


def test_control_tokens_are_checked_at_construction(tokenizer, make_tokenizer, specs):
    with pytest.raises(ConfigError, match="<depth>"):
        Preprocessor(tokenizer, {"depth": specs["image"]}, order=("depth",))
    with pytest.raises(ConfigError, match="order"):
        Preprocessor(tokenizer, specs, order=("image", "video"))
    with pytest.raises(ConfigError, match="share an id"):
        Preprocessor(make_tokenizer(pad_token="</s>"), specs)
    nameless = make_tokenizer()
    nameless.pad_token = None
    with pytest.raises(ConfigError, match="no pad token"):
        Preprocessor(nameless, specs)
    plain = make_tokenizer(["<unk>", "<s>", "</s>", "<pad>"])
    plain.add_tokens(["<image>", "</image>"])
    with pytest.raises(ConfigError, match="special token"):
        Preprocessor(plain, {"image": specs["image"]})
    with pytest.raises(ConfigError, match="drop_media"):
        Preprocessor(tokenizer, specs, drop_media=1.5)


def test_a_transform_of_another_encoder_is_a_config_error(tokenizer, specs, picture):
    wrong = MediaSpec("image", specs["image"].transform, 3, (3, 8, 8))
    with pytest.raises(ConfigError, match=r"\(3, 4, 4\).*\(3, 8, 8\)"):
        Preprocessor(tokenizer, {"image": wrong})(sample(("user", "A?", media("image", picture(1)))), True)


def test_dropped_media_are_a_function_of_seed_epoch_and_uid(tokenizer, specs, picture, tone):
    refs = media("image", picture(5)) + media("audio", tone(0.5))
    rows = [sample(("user", "A?", refs), ("assistant", "a"), uid=f"test/{index}") for index in range(60)]

    def kinds(epoch: int, seed: int = 0, predict: bool = False) -> list[tuple[str, ...]]:
        preprocess = Preprocessor(tokenizer, specs, drop_media=0.5, seed=seed, cache_mb=1)
        return [tuple(preprocess(row, predict, epoch).media) for row in rows]

    first = kinds(0)
    assert first == kinds(0)
    assert first != kinds(1)
    assert first != kinds(0, seed=1)
    assert set(first) == {("image", "audio"), ("image",), ("audio",)}
    assert 18 <= sum(len(kept) == 2 for kept in first) <= 42
    assert set(kinds(0, predict=True)) == {("image", "audio")}


def test_a_spoken_question_is_never_dropped(tokenizer, specs, picture, tone):
    drop = Preprocessor(tokenizer, specs, drop_media=1.0)
    refs = (*media("image", picture(7)), *media("audio", tone(0.5)))
    spoken = Sample((Turn("user", "", refs, spoken=True), Turn("assistant", "Red.")), "test/0", "test")
    assert [tuple(drop(spoken, epoch=epoch).media) for epoch in range(8)] == [("audio",)] * 8


def test_the_cache_changes_nothing(tokenizer, specs, picture: Callable[..., Path]):
    row = sample(("user", "A?", media("image", picture(77))), ("assistant", "a"))
    cached = Preprocessor(tokenizer, specs, cache_mb=1)
    values = [
        cached(row).media["image"],
        cached(row).media["image"],
        Preprocessor(tokenizer, specs)(row).media["image"],
    ]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_missing_zeros_gives_every_row_one_block_of_each_kind(tokenizer, specs, picture):
    order = ("image", "audio", "video")
    preprocess = Preprocessor(tokenizer, specs, order=order, missing="zeros")
    row = sample(("user", "What?", media("image", picture(200), picture(90))), ("assistant", "Two."))
    whole, bare = preprocess(row), Preprocessor(tokenizer, specs, order=order)(row)
    assert {kind: len(values) for kind, values in whole.media.items()} == {"image": 2, "audio": 1, "video": 1}
    assert torch.equal(whole.media["image"], bare.media["image"])
    for kind in ("audio", "video"):
        assert whole.media[kind].shape[1:] == specs[kind].shape
        assert not whole.media[kind].any()
        assert int(whole.slots[kind].sum()) == specs[kind].num_tokens
    starts = [int(whole.slots[kind].nonzero().min()) for kind in order]
    assert starts == sorted(starts)
    added = sum(specs[kind].num_tokens + 2 for kind in ("audio", "video"))
    assert len(whole.input_ids) == len(bare.input_ids) + added
    assert (whole.labels != IGNORE).sum() == (bare.labels != IGNORE).sum()
    text = sample(("user", "What?"))
    assert set(preprocess(text, predict=True).media) == set(order)


def test_missing_zeros_wants_the_prefix_layout(tokenizer, specs):
    with pytest.raises(ConfigError, match="use layout='prefix'"):
        Preprocessor(tokenizer, specs, layout="inline", missing="zeros")
