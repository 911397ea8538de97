"""Tensors in files, for all processes that share a folder: whole or not at all, checked when read, bounded in size."""

import hashlib
import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import safetensors.torch
import torch
from torch import Tensor

from macaw_lit.errors import ConfigError, in_one_line

BUCKETS = 256
"""Subfolders, each with its share of the limit, so that room is found without asking the other processes."""

_DIGEST = 32  # bytes of a SHA-256
_ABANDONED = 3600.0  # seconds after which a half-written file is nobody's


class DiskCache:
    """A folder of entries named by key; any number of processes and machines read and write it at once.

    An entry is the SHA-256 of key and content, then the content in safetensors' format. It is written beside its place,
    brought to disk and renamed; one that is torn or altered counts as absent and is written again. Where there is no
    room, entries that were not used since this cache was made go first, the longest unused first; if all were, the new
    one is not kept: under passes through the whole data, giving up entries in use would only make others miss.

    Args:
        folder: made if it is not there; to be removed as a whole to free its space.
        max_bytes: the most that all entries take. One that is larger than a 256th of it is not kept.

    Raises:
        ConfigError: the folder cannot be made, or the limit is not positive.
    """

    def __init__(self, folder: Path | str, max_bytes: int) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        if max_bytes <= 0:
            raise ConfigError(f"a cache of {max_bytes} bytes in {folder}; expected a positive size, or no folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            wanted = "expected a folder that can be made and written to"
            raise ConfigError(f"cache folder {folder} ({in_one_line(error)}); {wanted}, or null") from error
        self.born = time.time()
        self._told = torch.zeros(1, dtype=torch.bool).share_memory_()  # one warning for all workers
        self._writing = True

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors that were put there, or None where there are none, or not the ones that were put."""
        try:
            with self._path(key).open("rb") as file:
                digest, content = file.read(_DIGEST), file.read()
                if os.fstat(file.fileno()).st_mtime < self.born:
                    with suppress(OSError):  # a folder that may only be read
                        os.utime(file.fileno())
        except OSError:
            return None
        return safetensors.torch.load(content) if digest == _digest(key, content) else None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors if there is room. A disk that is full, or cannot be written, ends writing, with one warning."""
        if not self._writing:
            return
        content = safetensors.torch.save(dict(tensors))
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            if self._make_room(path, _DIGEST + len(content)):
                _write(path, _digest(key, content), content)
        except OSError as error:
            self._writing = False
            if not self._told:
                self._told.fill_(True)
                why = "training goes on, and decodes what is not cached yet"
                warnings.warn(f"cache folder {self.folder} ({in_one_line(error)}): {why}", stacklevel=2)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _make_room(self, path: Path, size: int) -> bool:
        """Removes what may be removed from the bucket of `path` until `size` bytes fit, and says whether they do."""
        share = self.max_bytes // BUCKETS
        if size > share:
            return False
        others = []
        for entry in os.scandir(path.parent):
            with suppress(FileNotFoundError):  # another process was faster
                others += [(entry.stat().st_mtime, entry.stat().st_size, entry.name)] if entry.name != path.name else []
        free = share - size - sum(freed for _, freed, _ in others)
        for used, freed, name in sorted(others):
            half_written = name.endswith(".tmp")
            if used < time.time() - _ABANDONED if half_written else (free < 0 and used < self.born):
                (path.parent / name).unlink(missing_ok=True)
                free += freed
        return free >= 0


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def _write(path: Path, *parts: bytes) -> None:
    with NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp", delete=False) as file:
        try:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
