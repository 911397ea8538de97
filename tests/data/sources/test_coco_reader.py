import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from macaw_lit.data.sources import coco
from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef, Rejection, Sample

CONTENT = {
    "info": {"year": 2017},
    "licenses": [],
    "images": [
        {"id": 9, "file_name": "000000000009.jpg", "width": 8, "height": 8, "license": 1},
        {"id": 12, "file_name": "000000000012.jpg"},
        {"id": 15, "file_name": "000000000015.jpg"},
    ],
    "annotations": [
        {"id": 100, "image_id": 9, "caption": "A plate of\n food. "},
        {"id": 101, "image_id": 9, "caption": "Food on a plate"},
        {"id": 102, "image_id": 9, "caption": "a plate OF food."},
        {"id": 103, "image_id": 12, "caption": "A dog."},
        {"id": 104, "image_id": 12, "caption": "  "},
        {"id": 105, "image_id": 15, "caption": "A cat."},
        {"id": 106, "image_id": 99, "caption": "Nothing."},
        {"id": 107, "caption": "Nothing."},
        {"id": 108, "image_id": 12},
        {"id": 109, "image_id": [12], "caption": "Nothing."},
        "nothing",
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Picture 9 of the 2017 release, picture 12 under its 2014 name, picture 15 nowhere."""
    for name in ("train2017/000000000009.jpg", "val2014/COCO_val2014_000000000012.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "captions.json").write_text(json.dumps(CONTENT))
    return tmp_path


def test_captions_become_descriptions(root: Path) -> None:
    found = list(coco.read(root / "captions.json", root))
    samples = [row for row in found if isinstance(row, Sample)]
    assert [sample.uid for sample in samples] == ["coco/9/0", "coco/9/1", "coco/12/3"]
    assert [sample.turns[1].text for sample in samples] == ["A plate of food.", "Food on a plate", "A dog."]
    assert samples[0].turns[0].media == (MediaRef("image", root / "train2017/000000000009.jpg"),)
    assert samples[2].turns[0].media == (MediaRef("image", root / "val2014/COCO_val2014_000000000012.jpg"),)
    assert samples[0].turns[0].text != samples[1].turns[0].text
    assert samples[0].meta == {"id": 100, "image_id": 9}
    assert [row.cause for row in found if isinstance(row, Rejection)] == [
        "duplicate",
        "empty_response",
        "media_missing",
        *["missing_key"] * 4,
        "not_an_object",
    ]


def test_several_roots_and_own_instructions(root: Path) -> None:
    roots = [root / "val2014", root / "train2017"]
    samples = [
        row for row in coco.read(root / "captions.json", roots, instructions=["Look!"]) if isinstance(row, Sample)
    ]
    assert len(samples) == 3
    assert {sample.turns[0].text for sample in samples} == {"Look!"}


def test_sounds_in_the_same_format(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/A000001.wav").write_bytes(b"RIFF")
    content = {
        "images": [{"id": 1, "file_name": "A000001.wav"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "Two beeps."}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    (sample,) = coco.read(tmp_path / "captions.json", tmp_path / "train", kind="audio")
    assert isinstance(sample, Sample)
    assert sample.uid == "coco_audio/1/0"
    assert sample.turns[0].media == (MediaRef("audio", tmp_path / "train/A000001.wav"),)
    assert sample.turns[0].text == "Describe the sound."


@pytest.mark.parametrize("content", [{"images": []}, {"annotations": []}, {"images": {}, "annotations": []}])
def test_other_layouts_are_refused(root: Path, content: Any) -> None:
    (root / "captions.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="expected a list of rows"):
        list(coco.read(root / "captions.json", root))


def test_a_missing_root_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="set media_root"):
        list(coco.read(root / "captions.json", root / "none"))
