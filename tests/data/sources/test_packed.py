"""The reader of packed data: what was changed, cut or broken off is one error with its place."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macaw_lit.data.describe import describe
from macaw_lit.data.media import load
from macaw_lit.data.shards import write_shards
from macaw_lit.data.sources.packed import read, sample_of
from macaw_lit.data.sources.rows import RowError
from macaw_lit.errors import DataError, MediaError
from macaw_lit.types import MediaRef, Rejection, Sample, Slice, Turn


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[[int], Path]) -> Path:
    """Three rows, of which two share a picture, in one tar."""
    rows = []
    for number, level in enumerate((10, 10, 20)):
        turns = (Turn("user", "What?", (MediaRef("image", picture(level)),)), Turn("assistant", "Grey."))
        rows.append(Sample(turns, f"made/{number}", "made"))
    write_shards(rows, tmp_path / "packed", 2**20, {})
    return tmp_path / "packed"


def index_of(folder: Path) -> Any:
    return json.loads((folder / "index.json").read_text())


def test_the_folder_or_its_index_is_read_and_described(folder: Path) -> None:
    rows = list(read(folder))
    assert [row.uid for row in rows if isinstance(row, Sample)] == ["made/0", "made/1", "made/2"]
    assert rows == list(read(folder / "index.json"))
    found = describe(folder / "index.json")
    assert (found.format, found.usable, found.media) == ("packed", 3, {"image": 3})


def test_a_spoken_question_stays_one(tmp_path: Path, tone: Callable[[float], Path]) -> None:
    turns = (Turn("user", "", (MediaRef("audio", tone(0.5)),), spoken=True), Turn("assistant", "It is."))
    write_shards([Sample(turns, "made/0", "made")], tmp_path / "packed", 2**20, {})
    (row,) = read(tmp_path / "packed")
    assert isinstance(row, Sample)
    assert [(turn.text, turn.spoken) for turn in row.turns] == [("", True), ("It is.", False)]


def test_a_shard_that_is_cut_or_gone_stops_the_reading(folder: Path) -> None:
    tar = folder / "000000.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:-512])
    with pytest.raises(DataError, match=rf"000000\.tar: {len(data) - 512} bytes, expected {len(data)}; copy"):
        list(read(folder))
    tar.unlink()
    with pytest.raises(DataError, match=r"000000\.tar: cannot be read.*copy"):
        list(read(folder))


def test_a_changed_byte_in_a_shard_is_found_when_the_medium_is_read(folder: Path) -> None:
    rows = [row for row in read(folder) if isinstance(row, Sample)]
    place = rows[2].turns[0].media[0].path
    assert isinstance(place, Slice)
    data = bytearray((folder / "000000.tar").read_bytes())
    data[place.offset + 9] ^= 1
    (folder / "000000.tar").write_bytes(data)
    with pytest.raises(MediaError, match=rf"000000\.tar:{place.offset}\+{place.size} grey20\.jpg.*SHA-256") as caught:
        load(place, "image")
    assert caught.value.cause == "wrong_checksum"
    assert load(rows[0].turns[0].media[0].path, "image").shape == (8, 8, 3)


def test_a_changed_index_stops_the_reading(folder: Path) -> None:
    lines = folder / "000000.tar.jsonl"
    text = lines.read_text()
    lines.write_text(text.replace("made/1", "made/9"))
    with pytest.raises(DataError, match=r"000000\.tar\.jsonl: SHA-256 .*copy"):
        list(read(folder))
    lines.write_text(text)
    whole = index_of(folder)
    changes: list[tuple[Any, str]] = [
        (whole | {"rows": 4}, "4 rows, expected the 3"),
        (whole | {"complete": False}, "broken off.*same pack command"),
        (whole | {"format": "other"}, "expected an index"),
        (whole | {"shards": None}, "expected the shards"),
        (whole | {"shards": [whole["shards"][0] | {"name": "../000000.tar"}]}, "expected the shards"),
        (whole | {"shards": [whole["shards"][0] | {"rows_sha256": 7}]}, "expected the shards"),
        ([], "expected an index"),
    ]
    for content, said in changes:
        (folder / "index.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=said):
            list(read(folder))
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match=r"index\.json: no such file"):
        list(read(folder))


def test_rows_that_somebody_wrote_anew_are_rejected_one_by_one(folder: Path) -> None:
    """With the checksum of the new lines, as only a hand that means it would write them."""
    lines = folder / "000000.tar.jsonl"
    first, second, third = lines.read_text().splitlines()
    outside = json.loads(second)
    outside["turns"][0]["media"][0]["shard"] = "/etc/passwd"
    lines.write_text("\n".join((first, json.dumps(outside), third[:40], "[]")) + "\n")
    index = index_of(folder) | {"rows": 4}
    index["shards"][0]["rows_sha256"] = hashlib.sha256(lines.read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    causes = [(row.cause, row.locator[-3:]) for row in read(folder) if isinstance(row, Rejection)]
    assert causes == [("media_outside", "l:2"), ("not_json", "l:3"), ("missing_key", "l:4")]


KEYS = ("uid", "source", "turns", "meta", "role", "text", "media", "kind", "name", "shard", "offset", "size", "sha256")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("user"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_no_row_raises_anything_but_a_row_error(row: Any) -> None:
    try:
        sample_of(row, {})
    except RowError as error:
        cause = error.cause
    else:
        cause = "missing_key"
    assert cause in ("missing_key", "media_outside")
