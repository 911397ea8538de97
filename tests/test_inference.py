"""From a model folder and real files to answers, the same whether asked together or one by one."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from macaw_lit.data.collate import Collator
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.prompt import Prompt
from macaw_lit.errors import MediaError, SampleError, WeightsError
from macaw_lit.inference import Answerer, load_answerer
from macaw_lit.model import Macaw
from macaw_lit.types import Batch, Example, MediaRef, Sample, Turn

PROMPT = Prompt(header="Look and listen.", response="\n\n### Answer:")


@pytest.fixture
def answerer(model: Macaw) -> Answerer:
    preprocess = Preprocessor(model.llm.tokenizer, model.specs(), prompt=PROMPT, max_length=120)
    return Answerer(model.eval(), preprocess, max_new_tokens=6)


@pytest.fixture
def samples(picture: Callable, tone: Callable, clip: Callable, tmp_path: Path) -> list[Sample]:
    frames = [np.full((32, 32, 3), level, np.uint8) for level in (0, 80, 160, 240)]
    film = clip(tmp_path / "film.mp4", frames, sound=np.zeros(6400, np.float32))
    media = {
        "text": (),
        "picture": (MediaRef("image", picture(30)),),
        "two pictures": (MediaRef("image", picture(200)), MediaRef("image", picture(90))),
        "film": (MediaRef("video", film), MediaRef("audio", film)),
        "sound": (MediaRef("audio", tone(0.5)),),
    }
    return [
        Sample((Turn("user", f"What of the {name}?" + " Say it." * (number % 3), refs),), name, "test")
        for number, (name, refs) in enumerate(media.items())
    ]


def test_answers_to_many_are_the_answers_one_by_one(answerer, samples):
    together = answerer(samples)
    assert together == [answerer([sample])[0] for sample in samples]
    assert len(set(together)) > 1, "a model that says the same to everything would pass"


def collate(answerer: Answerer, example: Example) -> Batch:
    return Collator(answerer.preprocess.pad, answerer.preprocess.specs, "left")([example])


def test_an_answer_is_the_greedy_continuation_without_control_tokens(answerer, samples):
    for sample in samples[:2]:
        example = answerer.preprocess(sample, predict=True)
        assert example.labels is None
        model, tokenizer = answerer.model, answerer.model.llm.tokenizer
        batch = collate(answerer, example)
        embeds, ids = model.embed(batch), []
        while len(ids) < 6 and tokenizer.eos_token_id not in ids:  # without a cache: the whole row anew each time
            everything = torch.ones(embeds.shape[:2], dtype=torch.bool)
            ids.append(int(model.llm(embeds, everything).logits[0, -1].argmax()))
            embeds = torch.cat([embeds, model.llm.embed(torch.tensor([ids[-1:]]))], dim=1)
        assert answerer([sample]) == [tokenizer.decode(ids, skip_special_tokens=True).strip()]


def test_media_reach_the_answer(answerer, samples):
    rows = [collate(answerer, answerer.preprocess(sample, predict=True)) for sample in samples]
    assert [{kind: len(media.values) for kind, media in row.media.items()} for row in rows] == [
        {"image": 0, "video": 0, "audio": 0},
        {"image": 1, "video": 0, "audio": 0},
        {"image": 2, "video": 0, "audio": 0},
        {"image": 0, "video": 1, "audio": 1},
        {"image": 0, "video": 0, "audio": 1},
    ]


def test_a_folder_answers_as_the_model_it_was_made_of(answerer, samples, tmp_path):
    answerer.model.save_pretrained(tmp_path / "model", answerer.preprocess)
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    loaded = load_answerer(tmp_path / "elsewhere", max_new_tokens=6)
    assert loaded(samples) == answerer(samples)
    for name in ("order", "layout", "max_length", "prompt"):
        assert getattr(loaded.preprocess, name) == getattr(answerer.preprocess, name), name


def test_without_a_limit_answers_are_as_long_as_the_folder_says(answerer, samples, tmp_path):
    answerer.model.llm.generation = {"max_new_tokens": 3}
    answerer.model.save_pretrained(tmp_path / "model", answerer.preprocess)
    long, short = load_answerer(tmp_path / "model", max_new_tokens=6), load_answerer(tmp_path / "model")
    assert long(samples) == answerer(samples)
    assert all(word.startswith(start) for word, start in zip(long(samples), short(samples), strict=True))
    assert short(samples) != long(samples)


def test_a_sample_that_cannot_be_used_is_named(answerer, tmp_path):
    with pytest.raises(MediaError, match=r"gone\.jpg"):
        answerer([Sample((Turn("user", "What?", (MediaRef("image", tmp_path / "gone.jpg"),)),), "x", "test")])
    with pytest.raises(SampleError, match="instruction is empty"):
        answerer([Sample((Turn("user", "  "),), "x", "test")])
    with pytest.raises(SampleError, match="shorten it or raise max_length"):
        answerer([Sample((Turn("user", "word " * 200),), "x", "test")])
    with pytest.raises(MediaError, match="kind 'smell'; this model has image, video, audio"):
        answerer([Sample((Turn("user", "What?", (MediaRef("smell", "rose"),)),), "x", "test")])


@pytest.fixture
def folder(answerer: Answerer, tmp_path: Path) -> Path:
    answerer.model.save_pretrained(tmp_path / "model", answerer.preprocess)
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_answerer(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '"text"',
        '{"prompt": 3}',
        '{"prompt": {}, "colour": "red"}',
        '{"prompt": {"heading": "x"}}',
        '{"prompt": {}, "layout": "spiral"}',
        '{"prompt": {}, "order": ["image"]}',
    ],
)
def test_damaged_preprocessing_is_refused(folder, content):
    path = folder / "preprocess.json"
    path.unlink() if content is None else path.write_text(content)
    message = refusal(folder)
    assert str(path) in message
    assert re.search("(copy the whole model folder|fetch it) again", message)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"\x00" * 50])
def test_every_damaged_file_is_one_clear_line(folder, name, content):
    path = folder / name
    path.unlink() if content is None else path.write_bytes(content)
    assert str(folder) in refusal(folder)


def test_a_folder_names_no_code_and_no_place_of_the_run(folder):
    settings = json.loads((folder / "preprocess.json").read_text())
    assert settings.keys() == {"order", "layout", "missing", "max_length", "prompt"}
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocess.json",
        "tokenizer",
    }
    assert not list(folder.rglob("*.py"))
