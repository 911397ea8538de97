"""Media found by name under their roots, and nowhere else."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from macaw_lit.data.media import has_audio
from macaw_lit.data.sources.rows import RowError
from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef

Roots = str | Path | Sequence[str | Path]
"""One folder of media or several, searched in order."""

SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png"),
    "video": (".mp4", ".mkv", ".webm", ".avi"),
    "audio": (".wav", ".flac", ".mp3", ".ogg"),
}


class MediaRoots:
    """Finds media by name in folders and their direct subfolders; every folder is listed once and remembered.

    Nothing outside the roots is found: no absolute names, no `..`, no links that lead out.

    Raises:
        DataError: a root is no folder.
    """

    def __init__(self, roots: Roots) -> None:
        self.roots = [Path(root) for root in ([roots] if isinstance(roots, str | Path) else roots)]
        for root in self.roots:
            if not root.is_dir():
                raise DataError(f"{root}: no such folder, expected the folder of the media; set media_root")
        self._bases = [(base, root.resolve()) for root in self.roots for base in [root, *_subfolders(root)]]
        self._names: dict[Path, frozenset[str]] = {}
        self._sound: dict[Path, bool] = {}

    def refs(self, kind: str, name: str) -> tuple[MediaRef, ...]:
        """The medium called `name`, as `candidates` has it; a video's sound is a second ref.

        Raises:
            RowError: media_missing, or media_outside where the name leads out of the roots.
        """
        path = self._find(candidates(kind, name))
        if kind != "video":
            return (MediaRef(kind, path),)
        if path not in self._sound:
            self._sound[path] = has_audio(path)
        return (MediaRef("video", path), MediaRef("audio", path)) if self._sound[path] else (MediaRef("video", path),)

    def _find(self, names: Sequence[str]) -> Path:
        for name in names:
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts:
                raise RowError("media_outside", f"{name!r} leads out of media_root")
            for base, limit in self._bases:
                if relative.name in self._list(base / relative.parent, limit):
                    return base / relative
        folders = ", ".join(str(root) for root in self.roots)
        raise RowError("media_missing", f"{names[0]!r} is not under {folders}")

    def _list(self, folder: Path, limit: Path) -> frozenset[str]:
        """Names of the files of a folder that really lie under `limit`."""
        if folder not in self._names:
            self._names[folder] = frozenset(_files(folder, limit))
        return self._names[folder]


def _subfolders(root: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir())


def _files(folder: Path, limit: Path) -> Iterator[str]:
    if not folder.is_dir() or not folder.resolve().is_relative_to(limit):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(limit)):
                yield entry.name


def candidates(kind: str, name: str) -> list[str]:
    """The names a medium may have: as given, with a suffix of its kind, or another of COCO's for the same number."""
    name = name.strip()
    stem = PurePosixPath(name).name.removesuffix(".jpg").rpartition("_")[2]
    names = [name, *(name + suffix for suffix in SUFFIXES[kind] if not name.endswith(suffix))]
    if kind == "image" and stem.isascii() and stem.isdigit() and len(stem) <= 12:
        number = f"{int(stem):012d}.jpg"
        names += [number, f"COCO_train2014_{number}", f"COCO_val2014_{number}"]
    return names
