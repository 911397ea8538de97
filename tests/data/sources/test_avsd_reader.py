import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macaw_lit.data.sources import avsd
from macaw_lit.errors import DataError
from macaw_lit.types import Rejection, Sample

DIALOG = [
    {"question": "is there any sound ?", "answer": "yes , he laughs ."},
    {"question": "what does he open ?", "answer": "a bag ."},
    {"question": "where is he ?", "answer": "__UNDISCLOSED__"},
]


@pytest.fixture
def root(tmp_path: Path, clip: Callable[..., Path]) -> Path:
    frames = [np.zeros((48, 64, 3), np.uint8)] * 4
    clip(tmp_path / "AB12C.mp4", frames, sound=np.zeros(6400, np.float32))
    return tmp_path


def read(root: Path, content: Any) -> list[Sample | Rejection]:
    (root / "avsd.json").write_text(json.dumps(content))
    return list(avsd.read(root / "avsd.json", root))


def test_the_challenges_layout(root: Path) -> None:
    dialogue = {"image_id": "AB12C", "summary": "A man laughs.", "caption": "person opens a bag", "dialog": DIALOG}
    (sample,) = read(root, {"type": "train", "version": "0.1", "dialogs": [dialogue]})
    assert isinstance(sample, Sample)
    assert sample.uid == "avsd/AB12C/0"
    assert [turn.role for turn in sample.turns] == ["user", "assistant"] * 2
    assert [turn.text for turn in sample.turns][2:] == ["what does he open ?", "a bag ."]
    assert [[ref.kind for ref in turn.media] for turn in sample.turns] == [["video", "audio"], [], [], []]
    assert {ref.path for ref in sample.turns[0].media} == {root / "AB12C.mp4"}
    assert sample.meta == {
        "image_id": "AB12C",
        "summary": "A man laughs.",
        "caption": "person opens a bag",
        "turns_left_out": 1,
    }


def test_the_original_layout(root: Path) -> None:
    content = {
        "AB12C": {"summary": None, "script": "A person opens a bag.", "data": DIALOG[:1]},
        "NONE1": {"data": DIALOG},
        "AB12X": "nothing",
    }
    found = read(root, content)
    assert isinstance(found[0], Sample)
    assert found[0].uid == "avsd/AB12C/0"
    assert found[0].meta["script"] == "A person opens a bag."
    assert "turns_left_out" not in found[0].meta
    assert [row.cause for row in found[1:] if isinstance(row, Rejection)] == ["media_missing", "not_an_object"]


def test_dialogues_without_a_usable_turn_are_rejected(root: Path) -> None:
    dialogs = [
        {"image_id": "AB12C", "dialog": DIALOG[2:]},
        {"image_id": "AB12C", "dialog": [{"question": "", "answer": "x"}]},
        {"image_id": "AB12C", "dialog": [{"question": "x", "answer": ""}]},
        {"image_id": "AB12C", "dialog": [{"question": "x"}, 7]},
        {"image_id": "AB12C", "dialog": []},
        {"image_id": "AB12C", "dialog": "x"},
        {"image_id": "AB12C"},
        {"dialog": DIALOG},
        {"image_id": "../AB12C", "dialog": DIALOG},
    ]
    found = read(root, {"dialogs": dialogs})
    assert [row.cause for row in found if isinstance(row, Rejection)] == [
        "undisclosed",
        "empty_instruction",
        "empty_response",
        *["missing_key"] * 5,
        "media_outside",
    ]


@pytest.mark.parametrize("content", [{"dialogs": {}}, 7, {"dialogs": None}])
def test_other_layouts_are_refused(root: Path, content: Any) -> None:
    with pytest.raises(DataError, match="expected a list of rows"):
        read(root, content)
