import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from macaw_lit.data.sources import karpathy
from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef, Rejection, Sample

NAME = "COCO_val2014_000000000042.jpg"


def picture(split: str, *sentences: Any, **more: Any) -> dict[str, Any]:
    return {"filepath": "val2014", "filename": NAME, "cocoid": 42, "split": split, "sentences": list(sentences)} | more


def raw(text: Any) -> dict[str, Any]:
    return {"tokens": ["a"], "raw": text, "sentid": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / NAME)
    return tmp_path


def read(root: Path, *pictures: Any, **arguments: Any) -> list[Sample | Rejection]:
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": list(pictures)}))
    return list(karpathy.read(root / "dataset_coco.json", root, **arguments))


def test_sentences_of_the_chosen_splits(root: Path) -> None:
    pictures = [
        picture("restval", raw("A\n cup. "), raw("A red cup.")),
        picture("test", raw("Not this.")),
        picture("train", raw("This.")),
    ]
    found = [row for row in read(root, *pictures) if isinstance(row, Sample)]
    assert [row.turns[1].text for row in found] == ["A cup.", "A red cup.", "This."]
    assert [row.uid for row in found] == [f"karpathy/{NAME}/{number}" for number in range(3)]
    assert found[0].turns[0].media == (MediaRef("image", root / "val2014" / NAME),)
    assert found[0].turns[0].text != found[1].turns[0].text
    assert (found[0].meta["split"], found[0].meta["cocoid"]) == ("restval", 42)
    (held,) = read(root, *pictures, splits=["test"])
    assert isinstance(held, Sample)
    assert held.turns[1].text == "Not this."


def test_bad_rows_are_rejected_by_cause_and_place(root: Path) -> None:
    pictures = [
        picture("train", raw(" "), raw(None), "x"),
        picture("train", raw("x"), filename=None),
        picture("train", raw("x"), filename="none.jpg", filepath=7),
        picture("train", raw("x"), filepath=".."),
        picture("train", sentences=None),
        "nothing",
    ]
    found = read(root, *pictures)
    assert [row.cause for row in found if isinstance(row, Rejection)] == [
        "empty_response",
        "missing_key",
        "not_an_object",
        "missing_key",
        "media_missing",
        "media_outside",
        "missing_key",
        "not_an_object",
    ]
    assert isinstance(found[1], Rejection)
    assert found[1].locator == f"{root / 'dataset_coco.json'}[0].sentences[1]"


def test_other_layouts_are_refused(root: Path) -> None:
    (root / "a.json").write_text('{"pictures": []}')
    with pytest.raises(DataError, match="'images'"):
        list(karpathy.read(root / "a.json", root))
