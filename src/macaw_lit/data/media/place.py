"""Where a medium's bytes are: in a file, a slice of a larger one, or memory; every decoder opens them here."""

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from macaw_lit.data.media.checks import OpenFile, check_file, check_size, media_error
from macaw_lit.types import Bytes, Place, Slice

MOST_OPEN = 16
"""Larger files that a thread keeps open."""


class _Named(io.BytesIO):
    """Bytes with a file name, by whose suffix FFmpeg knows formats without a signature."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


class _OpenFiles(threading.local):
    """The files that slices were read from last, `MOST_OPEN` at most; every thread and process has its own."""

    def __init__(self) -> None:
        self.files: OrderedDict[str, OpenFile] = OrderedDict()
        self.process = os.getpid()

    def read(self, path: Path | str, offset: int, size: int) -> bytes:
        if self.process != os.getpid():  # a forked process shares the places in its parent's files
            self.process = os.getpid()
            self.close()
        file = self.files.pop(str(path), None) or _open(path)
        try:
            file.seek(offset)
            data = file.read(size)
        except OSError:
            file.close()
            raise
        self.files[str(path)] = file
        if len(self.files) > MOST_OPEN:
            self.files.popitem(last=False)[1].close()
        return data

    def close(self) -> None:
        while self.files:
            self.files.popitem()[1].close()


_open_files = _OpenFiles()


def _open(path: Path | str) -> OpenFile:
    check_file(path)
    return Path(path).open("rb")


def name_of(place: Place) -> str:
    """The file name of a medium, without folders."""
    return Path(place).name if isinstance(place, str) else place.name


def check_place(place: Place, max_bytes: int | None) -> None:
    """Refuses what is no regular file, slice or memory of one to `max_bytes` bytes; nothing is opened.

    Raises:
        MediaError: missing, not_a_file, empty or too_large.
    """
    match place:
        case Slice(size=size):
            check_size(place, size, max_bytes)
        case Bytes(data=data):
            check_size(place, len(data), max_bytes)
        case _:
            check_file(place, max_bytes)


@contextmanager
def open_place(place: Place, max_bytes: int | None = None) -> Iterator[OpenFile]:
    """The bytes of a medium as a file from its beginning; a slice is read whole and compared with its checksum.

    Raises:
        MediaError: missing, not_a_file, empty, too_large; of a slice also truncated or wrong_checksum.
    """
    check_place(place, max_bytes)
    try:
        file = _opened(place)
    except OSError as error:
        found = f"it cannot be opened ({error.strerror or type(error).__name__})"
        raise media_error("missing", place, found, "a file that may be read") from error
    with file:
        yield file


def _opened(place: Place) -> OpenFile:
    match place:
        case Slice(name=name):
            return _Named(_read(place), name)
        case Bytes(data=data, name=name):
            return _Named(data, name)
        case _:
            return Path(place).open("rb")


def _read(place: Slice) -> bytes:
    data = _open_files.read(place.path, place.offset, place.size)
    if len(data) < place.size:
        raise media_error("truncated", place, f"{len(data)} bytes", f"{place.size}")
    found = hashlib.sha256(data).hexdigest()
    if found != place.sha256:
        raise media_error("wrong_checksum", place, f"SHA-256 {found}", place.sha256)
    return data
