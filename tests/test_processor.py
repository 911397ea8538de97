"""Messages as users of transformers write them: the same rows and answers as the data side and `predict` give."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from macaw_lit import predict
from macaw_lit.data.media import load_video
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import ConfigError, MediaError, SampleError, WeightsError
from macaw_lit.model import Macaw
from macaw_lit.processor import MacawProcessor
from macaw_lit.types import IGNORE, Batch, MediaRef, Sample, Turn


@pytest.fixture
def folder(model: Macaw, tmp_path: Path) -> Path:
    preprocess = Preprocessor(model.llm.tokenizer, model.specs(), max_length=300)
    model.save_pretrained(tmp_path / "model", preprocess)
    return tmp_path / "model"


@pytest.fixture
def processor(folder: Path) -> MacawProcessor:
    return MacawProcessor.from_pretrained(folder)


@pytest.fixture
def film(clip: Callable[..., Path], tmp_path: Path) -> Path:
    frames = [np.full((32, 32, 3), level, np.uint8) for level in (0, 80, 160, 240)]
    return clip(tmp_path / "film.mp4", frames, sound=np.random.default_rng(0).normal(size=6400).astype(np.float32) / 9)


def ask(*parts: Any, text: str = "What is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def same(first: Batch, second: Batch) -> bool:
    pairs = [(first.input_ids, second.input_ids), (first.attention_mask, second.attention_mask)]
    assert first.media.keys() == second.media.keys()
    for kind, media in first.media.items():
        pairs += [(media.values, second.media[kind].values), (media.slots, second.media[kind].slots)]
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_the_answer_is_that_of_predict(folder, processor, picture, tone, film, call, tmp_path):
    model = Macaw.from_pretrained(folder)
    questions = {
        ("Why?",): [{"role": "user", "content": "Why?"}],
        (f"image={picture(30)}", "Which colour?"): ask(
            {"type": "image", "path": str(picture(30))}, text="Which colour?"
        ),
        (f"video={film}", f"audio={tone(0.5)}", "Hear it?"): ask(
            {"type": "video", "path": film}, {"type": "audio", "path": tone(0.5)}, text="Hear it?"
        ),
    }
    answers = []
    for (*media, instruction), messages in questions.items():
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, max_new_tokens=8)
        words = [f"model={folder}", *media, f"instruction={instruction}", "max_new_tokens=8"]
        code, printed, _ = call(predict.main, tmp_path, *words)
        assert code == 0
        assert processor.batch_decode(ids) == [printed.strip()]
        assert processor.decode(ids[0]) == printed.strip()
        answers.append(printed)
    assert len(set(answers)) == len(answers), "a model that says the same to everything would pass"


def test_dialogues_together_are_padded_on_the_left_and_answered_as_alone(folder, processor, picture):
    model = Macaw.from_pretrained(folder)
    dialogues = [ask(text="Why?"), ask({"type": "image", "path": picture(9)}, text="What on earth is this thing?")]
    inputs = processor.apply_chat_template(dialogues)
    assert not inputs["attention_mask"][0, 0]
    assert inputs["attention_mask"][:, -1].all()
    together = model.generate(**inputs, max_new_tokens=5)
    for row, dialogue in enumerate(dialogues):
        alone = model.generate(**processor.apply_chat_template(dialogue), max_new_tokens=5)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()


def test_rows_are_those_of_the_data_side(processor, picture, film):
    messages = [
        {"role": "system", "content": "Be brief."},
        *ask({"type": "image", "url": picture(9).as_uri()}, {"type": "video", "video": str(film)}),
        {"role": "assistant", "content": "A film."},
        {"role": "user", "content": "Sure?"},
    ]
    media = (MediaRef("image", picture(9)), MediaRef("video", film), MediaRef("audio", film))
    turns = [Turn("system", "Be brief."), Turn("user", "What is this?", media), Turn("assistant", "A film.")]
    sample = Sample((*turns, Turn("user", "Sure?")), "x", "test")
    assert same(processor.apply_chat_template(messages), processor.batch([sample]))
    silent = processor.apply_chat_template(messages, load_audio_from_video=False)
    assert [len(silent.media[kind].values) for kind in ("image", "video", "audio")] == [1, 1, 0]


def test_a_dialogue_with_its_answer_has_labels_as_in_training(folder, processor):
    messages = [*ask(text="Why?"), {"role": "assistant", "content": "So."}]
    batch = processor.apply_chat_template(
        [messages, [*ask(text="What then?"), *messages[1:]]], add_generation_prompt=False
    )
    learned = batch.input_ids[0][batch.labels[0] != IGNORE]
    assert processor.tokenizer.decode(learned) == "\nSo.</s>"
    assert batch.attention_mask[:, 0].all()
    assert Macaw.from_pretrained(folder)(batch).nll > 0


def test_media_in_memory_are_as_from_files(processor, picture, film, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    stored = processor.apply_chat_template(ask({"type": "image", "path": tmp_path / "noise.png"}))
    content = (tmp_path / "noise.png").read_bytes()
    for given in (pixels, Image.fromarray(pixels), Image.open(tmp_path / "noise.png"), content, memoryview(content)):
        assert same(processor.apply_chat_template(ask({"type": "image", "image": given})), stored)
    frames = load_video(film, 4)
    stored = processor.apply_chat_template(ask({"type": "video", "path": film}), load_audio_from_video=False)
    for given in (frames, [Image.fromarray(frame) for frame in frames]):
        assert same(processor.apply_chat_template(ask({"type": "video", "video": given})), stored)
    with_sound = processor.apply_chat_template(ask({"type": "video", "path": film}))
    assert same(processor.apply_chat_template(ask({"type": "video", "video": film.read_bytes()})), with_sound)
    wave = np.random.default_rng(0).normal(size=1600) / 9
    batch = processor.apply_chat_template(ask({"type": "audio", "audio": wave}))
    transform = processor.preprocess.specs["audio"].transform
    assert torch.equal(batch.media["audio"].values[0], transform(wave.astype(np.float32)))


def test_the_text_of_the_template_names_its_media(processor, picture):
    messages = ask({"type": "image", "path": picture(9)})
    text = processor.apply_chat_template(messages, tokenize=False)
    ids = processor.apply_chat_template(messages).input_ids[0]
    assert text == processor.tokenizer.decode(ids)
    assert "<image><pad><pad><pad><pad></image>" in text
    assert processor.apply_chat_template([messages, messages], tokenize=False) == [text, text]


def test_inputs_move_and_are_read_like_those_of_transformers(processor):
    inputs = processor.apply_chat_template(ask())
    assert inputs["input_ids"] is inputs.input_ids
    assert set({**inputs}) == {"input_ids", "attention_mask", "media"}
    assert inputs.to("meta")["input_ids"].is_meta
    for given in ({"device": "meta", "dtype": torch.float16}, {"device": torch.float16}):
        half = inputs.to(**given)
        assert half.media["image"].values.dtype == torch.float16
        assert (half.input_ids.dtype, half.attention_mask.dtype) == (torch.int64, torch.bool)
    with pytest.raises(TypeError, match="takes a batch, or input_ids"):
        Macaw.generate(None, input_ids=inputs.input_ids)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the last turn is missing"),
        ([{"role": "robot", "content": "x"}], "role 'robot'; expected one of system, user, assistant"),
        ([{"content": "x"}], "role None"),
        ([{"role": "user"}], "content 'None'; expected a text or a list"),
        ([{"role": "user", "content": ["x"]}], "expected a text or a list of parts"),
        ([{"role": "user", "content": ""}], "instruction is empty"),
        ([{"role": "assistant", "content": "x"}], "the last turn is assistant; expected user"),
        ([{"role": "user", "content": "x"}] * 2, "turns are user user"),
        (ask({"type": "text", "words": "x"}), "text parts hold"),
        (ask({"type": "smell", "path": "x"}), "type 'smell'; this model takes text, image, video, audio"),
        (ask({"type": "image_url", "image_url": {"url": "x"}}), "type 'image_url'"),
        (ask({"type": "image"}), r"\['type'\]; expected one of path, url, image"),
        (ask({"type": "image", "path": "x", "url": "y"}), "expected one of path, url, image"),
        (ask({"type": "image", "url": "https://example.org/x.jpg"}), "nothing is fetched here; download it"),
        (ask({"type": "image", "url": "file://elsewhere/x.jpg"}), "nothing is fetched here; download it"),
        (ask({"type": "image", "image": "https://example.org/x.jpg"}), "nothing is fetched here; download it"),
        (ask({"type": "image", "path": "gone.jpg"}), r"gone\.jpg"),
        (ask({"type": "image", "image": b"bytes"}), r"image in memory .*no picture"),
        (ask({"type": "image", "image": torch.ones(3)}), "a Tensor, expected a path"),
        (ask({"type": "image", "image": np.ones((3, 8, 8))}), r"float64 \[3, 8, 8\], expected uint8 \[H,W,3\]"),
        (ask({"type": "image", "image": np.ones((8, 8), np.uint8)}), r"uint8 \[8, 8\], expected uint8 \[H,W,3\]"),
        (ask({"type": "image", "image": np.ones((0, 8, 3), np.uint8)}), "expected uint8"),
        (ask({"type": "video", "video": np.ones((8, 8, 3), np.uint8)}), r"expected uint8 \[F,H,W,3\]"),
        (ask({"type": "video", "video": [Image.new("RGB", (s, 4)) for s in (4, 5)]}), "frames of several sizes"),
        (ask({"type": "video", "video": []}), "a list, expected a path"),
        (ask({"type": "audio", "audio": np.ones((2, 99), np.float32)}), "mono float32 waveform of 16000 Hz"),
        (ask({"type": "audio", "audio": np.ones(99, np.int16)}), "mono float32 waveform"),
        (ask({"type": "audio", "audio": np.full(99, np.nan)}), "NaN"),
    ],
)
def test_messages_that_cannot_be_used_are_one_clear_line(processor, messages, message):
    with pytest.raises(SampleError, match=message) as caught:  # MediaError is one
        processor.apply_chat_template(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("x", "messages 'x'; expected a list"),
        ({"role": "user", "content": "x"}, "messages .*expected a list"),
        (["x"], "a message 'x'; expected"),
    ],
)
def test_what_is_no_list_of_messages_is_one_clear_line(processor, messages, message):
    unchecked = inspect.unwrap(MacawProcessor.apply_chat_template)  # users have no type checks, as tests do
    with pytest.raises(SampleError, match=message):
        unchecked(processor, messages)


def test_an_answer_is_asked_for_where_there_is_nothing_to_predict(processor):
    with pytest.raises(SampleError, match="the last turn is user; expected assistant: an answer to learn"):
        processor.apply_chat_template(ask(), add_generation_prompt=False)
    with pytest.raises(ConfigError, match="return_tensors='np', padding=True; expected True, 'pt' and True"):
        processor.apply_chat_template(ask(), return_tensors="np")
    with pytest.raises(ConfigError, match="padding=False; expected"):
        processor.apply_chat_template(ask(), padding=False)


def test_words_of_transformers_examples_are_understood(folder, processor, picture):
    model = Macaw.from_pretrained(folder, dtype=torch.bfloat16)
    inputs = processor.apply_chat_template(
        [ask({"type": "image", "path": picture(9)}), ask()],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    ).to(model.device, dtype=model.dtype)
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    spaced = processor.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert spaced == processor.batch_decode(ids)


def test_a_picture_beyond_the_limits_is_refused(processor):
    wide = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (10_000, 10_000, 3))
    with pytest.raises(MediaError, match="at most 50000000 pixels"):
        processor.apply_chat_template(ask({"type": "image", "image": wide}))


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="is no model folder"):
        MacawProcessor.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="neither a folder nor a hub id that can be reached"):
        MacawProcessor.from_pretrained("owner/name")
