import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from macaw_lit.data.sources import macaw
from macaw_lit.data.sources.rows import CAUSES
from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef, Rejection, Sample

PICTURE = "COCO_train2014_000000000009.jpg"


def write(folder: Path, rows: list[Any], wrapped: bool = True) -> Path:
    path = folder / "generated_examples.json"
    path.write_text(json.dumps({"data": rows} if wrapped else rows))
    return path


def row(item: Any, **more: Any) -> dict[str, Any]:
    return {"id": item, "instruction": "What is on the plate?", "response": "Bread.", **more}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "train2014").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train2014" / PICTURE)
    return tmp_path


@pytest.mark.parametrize("wrapped", [True, False])
def test_pictures_by_file_name(pictures: Path, wrapped: bool) -> None:
    path = write(pictures, [row(PICTURE, type="image.color", answer="bread")], wrapped)
    (sample,) = macaw.read(path, pictures, "image")
    assert isinstance(sample, Sample)
    assert sample.uid == f"macaw_image/{PICTURE}/0"
    assert sample.turns[0].media == (MediaRef("image", pictures / "train2014" / PICTURE),)
    assert [turn.text for turn in sample.turns] == ["What is on the plate?", "Bread."]
    assert sample.meta == {"id": PICTURE, "type": "image.color", "answer": "bread"}


@pytest.mark.parametrize("item", ["000000000009.jpg", "9", "COCO_val2014_000000000009.jpg", PICTURE[:-4]])
def test_pictures_of_another_release_are_found_by_number(pictures: Path, item: str) -> None:
    (sample,) = macaw.read(write(pictures, [row(item)]), pictures, "image")
    assert isinstance(sample, Sample)
    assert sample.turns[0].media[0].path == pictures / "train2014" / PICTURE


def test_videos_by_bare_id_bring_their_sound(tmp_path: Path, clip: Callable[..., Path]) -> None:
    frames = [np.zeros((48, 64, 3), np.uint8)] * 4
    (tmp_path / "Charades_v1_480").mkdir()
    loud = clip(tmp_path / "Charades_v1_480/AB12C.mp4", frames, sound=np.zeros(6400, np.float32))
    mute = clip(tmp_path / "Charades_v1_480/XY34Z.mp4", frames)
    path = write(tmp_path, [row("AB12C"), row("XY34Z"), row("AB12C.mp4"), row("NONE1")])
    found = list(macaw.read(path, tmp_path, "video", source="films"))
    media = [sample.turns[0].media for sample in found if isinstance(sample, Sample)]
    both = (MediaRef("video", loud), MediaRef("audio", loud))
    assert media == [both, (MediaRef("video", mute),), both]
    assert isinstance(found[3], Rejection)
    assert (found[3].cause, found[3].locator) == ("media_missing", f"{path}[3]")
    assert isinstance(found[0], Sample)
    assert found[0].uid == "films/AB12C/0"


def test_sounds(tmp_path: Path) -> None:
    (tmp_path / "A000001.wav").write_bytes(b"RIFF")
    samples = list(macaw.read(write(tmp_path, [row("A000001.wav"), row("A000001")]), tmp_path, "audio"))
    for sample in samples:
        assert isinstance(sample, Sample)
        assert sample.turns[0].media == (MediaRef("audio", tmp_path / "A000001.wav"),)


def test_spoken_questions(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "q.wav").write_bytes(b"RIFF")
    spoken = {"response": "A cup.", "spoken": True}
    rows = [
        {"id": "q.wav", **spoken},
        {"id": "q.wav", "instruction": "What is it?", **spoken},
        {"image": "a.png", "audio": "q.wav", "instruction": "", **spoken},
        {"id": "q.wav", "instruction": "Heard?", **spoken, "spoken": False},
        {"image": "a.png", **spoken},  # nothing to hear
        {"id": "q.wav", "instruction": "", "response": "A cup."},  # nobody says that it is spoken
        {"id": "q.wav", **spoken, "spoken": "yes"},
    ]
    path = write(tmp_path, rows)
    assert macaw.sniff(rows) == {"kind": "audio"}
    found = list(macaw.read(path, tmp_path, "audio"))
    samples = [entry for entry in found if isinstance(entry, Sample)]
    asked = [sample.turns[0] for sample in samples]
    assert [(turn.text, turn.spoken) for turn in asked] == [("", True)] * 3 + [("Heard?", False)]
    assert [[ref.kind for ref in turn.media] for turn in asked] == [["audio"], ["audio"], ["image", "audio"], ["audio"]]
    assert [sample.meta.get("transcript") for sample in samples] == [None, "What is it?", None, None]
    assert [entry.cause for entry in found if isinstance(entry, Rejection)] == [
        "empty_instruction",
        "empty_instruction",
        "missing_key",
    ]
    joined = [entry for entry in macaw.read(path, tmp_path, "audio", turns=4) if isinstance(entry, Sample)]
    assert [len(sample.turns) for sample in joined] == [2, 2, 2, 2]


def test_nothing_outside_the_roots_is_found(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "root_other"
    for folder in (root, other):
        folder.mkdir()
    Image.new("RGB", (8, 8)).save(other / "secret.png")
    (root / "link.png").symlink_to(other / "secret.png")
    (root / "folder").symlink_to(other)
    Image.new("RGB", (8, 8)).save(root / "plain.png")
    (root / "inside.png").symlink_to(root / "plain.png")
    names = ["../root_other/secret.png", str(other / "secret.png"), "link.png", "folder/secret.png", "secret.png"]
    found = list(macaw.read(write(tmp_path, [row(name) for name in names]), root, "image"))
    causes = [entry.cause for entry in found if isinstance(entry, Rejection)]
    assert causes == ["media_outside", "media_outside", *["media_missing"] * 3]
    (inside,) = macaw.read(write(tmp_path, [row("inside.png")]), root, "image")
    assert isinstance(inside, Sample)


def test_bad_rows_are_rejected_by_cause(pictures: Path) -> None:
    rows = [row(None), row(7), row(PICTURE, instruction=" "), row(PICTURE, response=""), row(""), [], {"id": PICTURE}]
    found = list(macaw.read(write(pictures, rows), pictures, "image"))
    assert [entry.cause for entry in found if isinstance(entry, Rejection)] == [
        "missing_key",
        "missing_key",
        "empty_instruction",
        "empty_response",
        "media_missing",
        "not_an_object",
        "missing_key",
    ]


def test_an_object_without_rows_is_refused(pictures: Path) -> None:
    (pictures / "a.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match="'data'"):
        list(macaw.read(pictures / "a.json", pictures, "image"))


IDS = st.text(max_size=30) | st.sampled_from(
    [
        "..",
        ".",
        "/",
        "a/../b",
        "\0",
        "x" * 400,
        "x" * 400 + "/a",
        "http://a/b",
        "file:///",
        "data:",
        PICTURE,
        "train2014",
        "²",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(IDS, max_size=5), st.sampled_from(["image", "video", "audio"]))
def test_any_name_is_found_or_rejected(pictures: Path, items: list[str], kind: Any) -> None:
    found = list(macaw.read(write(pictures, [row(item) for item in items]), pictures, kind))
    assert len(found) == len(items)
    for entry in found:
        if isinstance(entry, Sample):
            assert Path(entry.turns[0].media[0].path).is_file()
        else:
            assert entry.cause in CAUSES


def test_absolute_names_and_addresses_under_a_root_are_found(pictures: Path) -> None:
    wanted = pictures / "train2014" / PICTURE
    rows = [row(str(wanted)), row(wanted.as_uri()), row(f"file://localhost{wanted}"), row("file:///etc/hosts")]
    *found, outside = macaw.read(write(pictures, rows), pictures, "image")
    assert [entry.turns[0].media[0].path for entry in found if isinstance(entry, Sample)] == [wanted] * 3
    assert isinstance(outside, Rejection)
    assert outside.cause == "media_outside"


def test_another_suffix_of_the_same_kind_is_found(tmp_path: Path) -> None:
    for name in ("AB12C.mkv", "AB12C.mp4.wav"):
        (tmp_path / name).write_bytes(b"x")
    (film,) = macaw.read(write(tmp_path, [row("AB12C.mp4")]), tmp_path, "video")
    (sound,) = macaw.read(write(tmp_path, [row("AB12C.mp4")]), tmp_path, "audio")  # as the original extracts it
    assert isinstance(film, Sample)
    assert isinstance(sound, Sample)
    assert film.turns[0].media == (MediaRef("video", tmp_path / "AB12C.mkv"),)
    assert sound.turns[0].media == (MediaRef("audio", tmp_path / "AB12C.mp4.wav"),)


def test_links_in_a_circle_hide_nothing_else(pictures: Path) -> None:
    for folder in (pictures, pictures / "train2014"):
        (folder / "loop").symlink_to(folder / "loop")
        (folder / "nowhere").symlink_to(folder / "none")
    rows = [row("loop/x.jpg"), row("loop"), row("nowhere"), row(PICTURE)]
    *lost, found = macaw.read(write(pictures, rows), pictures, "image")
    assert [entry.cause for entry in lost if isinstance(entry, Rejection)] == ["media_missing"] * 3
    assert isinstance(found, Sample)


def test_rows_that_name_their_media_by_kind(pictures: Path, clip: Callable[..., Path]) -> None:
    """The layout of the original's inference files, in which the text "None" stands for none."""
    film = clip(pictures / "v.mp4", [np.zeros((48, 64, 3), np.uint8)] * 4, sound=np.zeros(6400, np.float32))
    (pictures / "s.wav").write_bytes(b"RIFF")
    asked = {"instruction": "What?", "response": "That."}
    rows = [
        {"image": f"train2014/{PICTURE}", "video": "None", "audio": "None", **asked},
        {"image": "None", "video": "v.mp4", "audio": None, **asked},
        {"image": PICTURE, "video": "v.mp4", "audio": "s.wav", **asked},
        {"image": "None", "video": "None", "audio": "None", **asked},
        asked,
        {"image": "none.jpg", **asked},
    ]
    found = list(macaw.read(write(pictures, rows), pictures))
    picture = MediaRef("image", pictures / "train2014" / PICTURE)
    assert [row.turns[0].media for row in found if isinstance(row, Sample)] == [
        (picture,),
        (MediaRef("video", film), MediaRef("audio", film)),
        (picture, MediaRef("video", film), MediaRef("audio", pictures / "s.wav")),
        (),
    ]
    assert [row.cause for row in found if isinstance(row, Rejection)] == ["missing_key", "media_missing"]
