"""Measuring a model folder: the same result as at the end of its training, wherever and whenever it is asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macaw_lit.evaluate import main

pytestmark = pytest.mark.slow


@pytest.fixture
def evaluate(call: Callable, tiny_run: Any, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """`python -m macaw_lit.evaluate` of a copy of the tiny model, as the tiny run was evaluated."""
    shutil.copytree(tiny_run.folder / "model", tmp_path / "a copy")
    settings = [word for word in tiny_run.words if word.startswith("evaluation")]
    words = [f"model={tmp_path / 'a copy'}", f"hydra.run.dir={tmp_path}/run", *settings]
    return lambda *others: call(main, tiny_run.root, *words, *others)


def test_it_finds_what_training_found(tiny_run, evaluate, tmp_path):
    code, out, err = evaluate()
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"{tmp_path}/run"
    assert "gating types pass" in out
    for name in ("modality_use.json", "gallery.html"):  # the second quotes the answers themselves
        assert (tmp_path / "run" / name).read_bytes() == (tiny_run.folder / name).read_bytes(), name
    pictures = {"accuracy.png", "gallery.png", "gallery"}
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found == {"config.yaml", ".hydra", "modality_use.json", "gallery.html", *pictures}


def test_another_number_of_items_is_another_measurement(evaluate, tmp_path):
    assert evaluate("evaluation.n=1")[0] == 0
    use = json.loads((tmp_path / "run" / "modality_use.json").read_text())
    assert {row["n"] for row in use.values()} == {1}


MISTAKES = {
    "model=nowhere": "nowhere is no model folder",
    "evaluation.types=/nowhere.json": "/nowhere.json: cannot be read",
    "data.heldout.image.read.path=/nowhere.json": "/nowhere.json: no such file, expected a data file",
    "evaluation.max_new_tokens=0": "max_new_tokens=0; expected at least 1",
    "device=gpu0": "expected cpu, or cuda with a GPU",
    "evaluation.batch_sise=3": "did you mean evaluation.batch_size?",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_one_line(evaluate, word):
    code, _, err = evaluate(word)
    assert (code, err.count("\n")) == (1, 1), err
    assert err.startswith("error: ")
    assert MISTAKES[word] in err


def test_an_unusable_heldout_medium_is_one_line(tiny_run, evaluate, tmp_path):
    shutil.copytree(tiny_run.root / "data/demo/audio/val", tmp_path / "val")
    for path in (tmp_path / "val").iterdir():
        path.write_bytes(b"RIFF")
    code, _, err = evaluate(f"data.heldout.audio.read.media_root={tmp_path / 'val'}")
    assert (code, err.count("\n")) == (1, 1), err
    assert f"{tmp_path / 'val'}" in err
    assert "fetch it again" in err
