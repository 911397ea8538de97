"""The stand-in for downloaded weights: it writes files that load as real ones do, and says no in one line."""

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from whisper.model import AudioEncoder

from macaw_lit.cli import conf_dir
from macaw_lit.data.demo.arguments import read_arguments, run
from macaw_lit.data.demo.pretrain import Head, _lesson, main, pretrain
from macaw_lit.data.demo.render import Sizes, render
from macaw_lit.data.demo.tokenizer import MEDIA_TOKENS
from macaw_lit.encoders.clip import ClipEncoder
from macaw_lit.encoders.whisper import WhisperEncoder
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.llms.hf import HFCausalLM


def sizes_of(group: str, name: str) -> dict[str, Any]:
    """As training reads them."""
    config: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    return {key: value for key, value in config.items() if key not in ("_target_", "tokenizer")}


@pytest.mark.slow
def test_weights_are_written_once_in_the_published_formats(tmp_path, capsys):
    root = tmp_path / "demo"
    render(root, seed=5, sizes=Sizes(images=30, videos=40, sounds=30, texts=10, heldout=8), workers=1)
    assert pretrain(root, seed=1, steps=3)
    table = capsys.readouterr().out
    assert all(word in table for word in ("image", "video", "audio", "pairs", "questions on captions"))

    clip, whisper = (
        ClipEncoder(**sizes_of("encoder", "clip_tiny")),
        WhisperEncoder(**sizes_of("encoder", "whisper_tiny")),
    )
    for encoder, name in ((clip, "clip.safetensors"), (whisper, "whisper.pt")):
        before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
        encoder.load_pretrained(str(root / "weights" / name))
        still = {key for key, tensor in encoder.state_dict().items() if torch.equal(tensor, before[key])}
        assert still <= {"encoder.positional_embedding"}, "the fixed sinusoids alone are the same everywhere"
        assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())

    # What openai-whisper itself would make of the file: dimensions under its names, and the encoder's own keys.
    saved = torch.load(root / "weights" / "whisper.pt", weights_only=True)
    dims = saved["dims"]
    published = AudioEncoder(dims["n_mels"], dims["n_audio_ctx"], dims["n_audio_state"], 3, 2)
    published.load_state_dict({key.removeprefix("encoder."): value for key, value in saved["model_state_dict"].items()})

    llm = HFCausalLM(tokenizer=str(root / "tokenizer"), delimiters=MEDIA_TOKENS, **sizes_of("llm", "llama_tiny"))
    before = llm.table.clone()
    llm.load_pretrained(str(root / "weights" / "llama"))
    assert not torch.equal(llm.table, before)

    record = json.loads((root / "weights" / "pretraining.json").read_text())
    assert len(record["scores"]) == 7, "words and pairs of three media, and reading"
    assert all(score["heldout"] > 0 for score in record["scores"])
    assert all(math.isnan(score["score"]) or 0 <= score["score"] <= 1 for score in record["scores"])

    files = {path: path.stat().st_mtime_ns for path in (root / "weights").rglob("*")}
    assert not pretrain(root, seed=1, steps=3)
    assert files == {path: path.stat().st_mtime_ns for path in (root / "weights").rglob("*")}


def test_a_world_too_small_to_learn_from_is_refused():
    said = {"train": {f"{number}.jpg": ["a red circle"] for number in range(14)}, "val": {}}
    with pytest.raises(
        DataError, match="14 image files with captions: no phrase is said of 15 of them; render a larger world"
    ):
        _lesson(
            "image", ClipEncoder(**sizes_of("encoder", "clip_tiny")), said, kernel=4, stride=4, anywhere=True, batch=2
        )


@pytest.mark.parametrize("anywhere", [True, False])
def test_heads_have_a_place_for_every_position_or_pool_over_them(anywhere):
    head = Head(dim=6, positions=16, phrases=5, kernel=4, stride=4, anywhere=anywhere)
    features = torch.randn(3, 16, 6)
    assert head(features).shape == (3, 5)
    swapped = torch.cat([features[:, 4:], features[:, :4]], dim=1)  # whole windows change places
    # A pooled head sums the same four windows in another order: a few ulp of values near 1.
    assert torch.allclose(head(swapped), head(features), atol=1e-5) == anywhere


def test_what_is_no_world_is_refused(tmp_path):
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            DataError, match=r"is no demo world \(no world.json\): run python -m macaw_lit.data.demo.render"
        ):
            pretrain(root)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("step=3", "'step=3': expected key=value with one of the keys root, seed, steps"),
        ("steps", "'steps': expected key=value"),
        ("steps=many", "'steps=many': expected a whole number, such as steps=900"),
        ("seed=-1", "'seed=-1': expected a whole number"),
        ("root=/nowhere/at/all", "/nowhere/at/all is no demo world"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_1(monkeypatch, argument, message):
    monkeypatch.setattr(sys, "argv", ["pretrain", argument])
    with pytest.raises(SystemExit) as caught:
        run(main)
    assert isinstance(caught.value.code, str), "Python prints it on stderr and exits with 1"
    assert caught.value.code.startswith("error: ")
    assert message in caught.value.code
    assert "\n" not in caught.value.code


def test_arguments_take_the_type_of_their_default():
    read = partial(read_arguments, defaults={"root": Path("data/demo"), "seed": 0})
    assert read([]) == {"root": Path("data/demo"), "seed": 0}
    assert read(["seed=7", "root=/a=b"]) == {"root": Path("/a=b"), "seed": 7}
    assert read(["seed=7", "seed=8"])["seed"] == 8
    with pytest.raises(ConfigError, match="root, seed"):
        read(["colour=red"])
