"""Media found by name under their roots, and nowhere else."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from macaw_lit.data.media import has_audio
from macaw_lit.data.sources.rows import RowError
from macaw_lit.errors import DataError, in_one_line
from macaw_lit.types import MediaRef

Roots = str | Path | Sequence[str | Path]
"""One folder of media or several, searched in order."""

SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "video": (".mp4", ".mkv", ".webm", ".avi", ".mov"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"),
}


class MediaRoots:
    """Finds media by name in folders and their direct subfolders; every folder is listed once and remembered.

    Nothing outside the roots is found: no absolute names but those that begin with a root, no `..`, no links that lead
    out, no addresses of a network.

    Raises:
        DataError: a root is no folder or cannot be listed.
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
            RowError: media_missing; media_outside where the name leads out of the roots; media_remote, media_embedded.
        """
        path = self._find(candidates(kind, self._local(name.strip())))
        if kind != "video":
            return (MediaRef(kind, path),)
        if path not in self._sound:
            self._sound[path] = has_audio(path)
        return (MediaRef("video", path), MediaRef("audio", path)) if self._sound[path] else (MediaRef("video", path),)

    def _local(self, name: str) -> str:
        """A name without `file://` and without the root that it begins with."""
        if name[:5].lower() == "data:":
            raise RowError("media_embedded", f"{name[:30]!r} holds the medium itself; write it to a file and name that")
        if "://" in name:
            scheme, host = name.split("://")[0].lower(), name.split("://")[1].partition("/")[0]
            if scheme != "file" or host not in ("", "localhost"):
                raise RowError("media_remote", f"{name[:80]!r} is not on this machine; fetch it and name the file")
            name = url2pathname(urlsplit(name).path)
        for root in self.roots:
            for folder in (root, root.absolute(), root.resolve()):
                if PurePosixPath(name).is_absolute() and PurePosixPath(name).is_relative_to(folder):
                    return str(PurePosixPath(name).relative_to(folder))
        return name

    def _find(self, names: Sequence[str]) -> Path:
        for name in names:
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts:
                raise RowError("media_outside", f"{name[:80]!r} leads out of media_root")
            for base, limit in self._bases:
                if relative.name in self._list(base / relative.parent, limit):
                    return base / relative
        folders = ", ".join(str(root) for root in self.roots)
        raise RowError("media_missing", f"{names[0][:80]!r} is not under {folders}")

    def _list(self, folder: Path, limit: Path) -> frozenset[str]:
        """Names of the files of a folder that really lie under `limit`."""
        if folder not in self._names:
            self._names[folder] = frozenset(_files(folder, limit))
        return self._names[folder]


def _subfolders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry.path) for entry in entries if _is_folder(entry))
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({in_one_line(error)}); make the folder readable") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises at links in a circle, Path.is_dir does not.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def _files(folder: Path, limit: Path) -> Iterator[str]:
    try:
        if not folder.is_dir() or not folder.resolve().is_relative_to(limit):
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False) or (entry.is_symlink() and _leads_to_file(entry.path, limit)):
                    yield entry.name
    except OSError:  # a name too long for any file, or a folder closed to us
        return


def _leads_to_file(link: str, limit: Path) -> bool:
    return Path(link).is_file() and Path(link).resolve().is_relative_to(limit)


def kind_of(name: object) -> str | None:
    """The kind of medium that a file name's suffix tells; None where it tells none."""
    suffix = PurePosixPath(str(name)).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def candidates(kind: str, name: str) -> list[str]:
    """The names a medium may have: as given, with another suffix of its kind, or COCO's others for the same number."""
    bare = name.rpartition(".")[0] if kind_of(name) else name
    names = [name, *(name + suffix for suffix in SUFFIXES[kind] if not name.endswith(suffix))]
    names += [bare + suffix for suffix in SUFFIXES[kind] if bare != name]
    stem = PurePosixPath(bare).name.rpartition("_")[2]
    if kind == "image" and stem.isascii() and stem.isdigit() and len(stem) <= 12:
        number = f"{int(stem):012d}.jpg"
        names += [number, f"COCO_train2014_{number}", f"COCO_val2014_{number}"]
    return list(dict.fromkeys(names))
