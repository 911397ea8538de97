"""Checkpoints on disk: written aside and renamed, read through before they are trusted, and the newest found again."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from macaw_lit.errors import ConfigError
from macaw_lit.files import PART

SIZES = "sizes.json"


def settle(part: Path, path: Path) -> None:
    """Give a checkpoint that was written aside, a file or a folder, its name, once all of it is on the disk.

    Whatever bears the name afterwards is whole: a rename within a folder happens or does not (POSIX `rename`), and
    is durable once the folder is synchronised. `last.ckpt` beside it then points to it. It is the newest there by its
    time too, whatever the clock says.
    """
    if part.is_dir():
        files = sorted(file for file in part.rglob("*") if file.is_file())
        sizes = {str(file.relative_to(part)): file.stat().st_size for file in files}
        (part / SIZES).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    latest = max((each.stat().st_mtime_ns for each in checkpoints(path.parent)), default=0)
    if part.stat().st_mtime_ns <= latest:  # a clock was set back
        os.utime(part, ns=(latest + 1, latest + 1))
    for place in [part, *part.rglob("*")]:
        _synchronise(place)
    if path.is_dir():  # a damaged one of the same step; a folder cannot be renamed onto it
        shutil.rmtree(path)
    part.replace(path)
    link = path.with_name("last.ckpt" + PART)
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(path.with_name("last.ckpt"))
    _synchronise(path.parent)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what was left half written."""
    for path in [*checkpoints(folder)[keep:], *folder.glob(f"*{PART}")]:
        remove(path)


def require_room(folder: Path) -> None:
    """Refuse a place where no folder can be made or written in, without making one.

    Raises:
        ConfigError: it, or the nearest folder above it that is there, takes no more.
    """
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "is no folder" if not above.is_dir() else "may not be written to"
        raise ConfigError(
            f"checkpoints in {folder} cannot be: {above} {why}; choose another callbacks.checkpoint.folder"
        )


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first; a run that was taken up at an earlier step writes newer ones."""
    found = [(path.stat().st_mtime_ns, path.name, path) for path in folder.glob("step*.ckpt")]
    return [path for *_, path in sorted(found, reverse=True)]


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be read to its end, or None, and a line about each newer one that cannot."""
    damaged: list[str] = []
    for path in checkpoints(folder):
        flaw = _flaw(path)
        if flaw is None:
            return path, damaged
        damaged.append(f"{path}: skipped, {flaw}")
    return None, damaged


def require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model or optimizer, by the first setting that differs; paths may have moved.

    Raises:
        ConfigError: a size or class of a part is another one.
    """
    first, second = dict(_leaves(before)), dict(_leaves(now))
    for key in sorted({*first, *second}):
        values = first.get(key), second.get(key)
        if values[0] != values[1] and not all(isinstance(value, str) and "/" in value for value in values):
            raise ConfigError(
                f"the checkpoint is of another {key.partition('.')[0]}: {key} was {values[0]}, now is {values[1]}; "
                "restore it, or start anew in another folder"
            )


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from _leaves(value, f"{prefix}{key}.")
    if not isinstance(node, Mapping | list | tuple):
        yield prefix[:-1], node


def _flaw(path: Path) -> str | None:
    """What is wrong with a checkpoint: a file must have the checksums, a folder the sizes that it states."""
    try:
        if path.is_file():
            with zipfile.ZipFile(path) as file:
                torn = file.testzip()
            return f"its part {torn} is damaged" if torn else None
        sizes = json.loads((path / SIZES).read_text(encoding="utf-8"))
        wrong = [name for name, size in sizes.items() if (path / name).stat().st_size != size]
        return f"its file {wrong[0]} has another size than when it was written" if wrong else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return f"it is not whole ({' '.join(str(error).split()) or type(error).__name__})"


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
