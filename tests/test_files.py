"""A file is replaced whole or not at all."""

import os
from pathlib import Path

import pytest

from macaw_lit.files import write_whole


@pytest.mark.parametrize("data", ["é\r\nß\n", b"\x00\xff", bytearray(b"abc")])
def test_writes_what_it_is_given(tmp_path: Path, data: str | bytes | bytearray) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    write_whole(path, data)
    assert path.read_bytes() == (data.encode("utf-8") if isinstance(data, str) else bytes(data))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_old_file_stays_where_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
