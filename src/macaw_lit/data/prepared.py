"""From a medium's file to the encoder's input, by way of memory and disk."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from macaw_lit.data import media
from macaw_lit.data.media.checks import DEFAULTS, Limits
from macaw_lit.data.media.disk import DiskCache
from macaw_lit.data.media.memory import as_decoded
from macaw_lit.data.media.place import check_place
from macaw_lit.errors import ConfigError
from macaw_lit.types import Bytes, Decoded, MediaRef, MediaSpec, Place, Slice

SETTLED_NS = 2 * 10**9
"""Age of a file, by its status, from which on every change shows in its time stamps, which are coarse."""

_LIBRARIES = ("av", "decord", "librosa", "pillow", "soundfile", "soxr")

Packed = dict[str, Tensor]
"""Values as they are kept; see `pack`."""


class Prepared:
    """Encoder inputs of media: from memory, else from the disk, else decoded and transformed, and then kept in both.

    What is kept gives the very same bits again. Errors are not kept: a bad file is tried again. Media given as arrays
    are never kept. In memory a medium is known by its path, or by its content where a row holds that; on disk by the
    content of its file, or the checksum of its slice, and by `recipe`, and not kept if it was changed within the last
    two seconds or while it was read.

    Args:
        specs: kind → what its encoder wants; transforms are deterministic.
        max_bytes: of all that is kept in memory, the least recently used first out; one per worker. 0 keeps none.
        disk: where else to keep them; None keeps them nowhere else.
        limits: what is refused before decoding.
    """

    def __init__(
        self,
        specs: Mapping[str, MediaSpec],
        max_bytes: int = 0,
        disk: DiskCache | None = None,
        limits: Limits = DEFAULTS,
    ) -> None:
        self.specs, self.max_bytes, self.disk, self.limits = dict(specs), max_bytes, disk, limits
        self.size = 0
        self._kept: OrderedDict[tuple[str, str], Packed] = OrderedDict()
        self._contents: dict[str, _Content] = {}  # so that a file is hashed once per worker: 200 bytes each
        self._recipes = {kind: recipe(spec, limits) for kind, spec in specs.items()} if disk else {}

    def load(self, kind: str, ref: MediaRef) -> Tensor:
        """The input of one item, [*spec.shape]; not to be written to.

        Raises:
            MediaError: the medium cannot be used.
            ConfigError: the transform does not give what the encoder wants.
        """
        spec = self.specs[kind]
        if isinstance(ref, Decoded):
            return self._transformed(kind, as_decoded(ref, spec.decoder, spec.frames, self.limits))
        name = (kind, _sha256(ref.path) if isinstance(ref.path, Bytes) else str(ref.path))
        if name in self._kept:
            self._kept.move_to_end(name)
            return unpack(self._kept[name])
        values, packed = self._by_disk(kind, ref, self.disk) if self.disk else (self._decoded(kind, ref), None)
        if self.max_bytes:
            self._keep(name, packed or pack(values))
        return values

    def _decoded(self, kind: str, ref: MediaRef) -> Tensor:
        spec = self.specs[kind]
        return self._transformed(kind, media.load(ref.path, spec.decoder, spec.frames, self.limits))

    def _transformed(self, kind: str, raw: np.ndarray) -> Tensor:
        spec = self.specs[kind]
        # [F,3,H,W] of a video
        values = torch.stack([spec.transform(frame) for frame in raw]) if spec.frames else spec.transform(raw)
        if values.shape != spec.shape:
            raise ConfigError(f"the {kind} transform gave {tuple(values.shape)}; its encoder wants {spec.shape}")
        return values

    def _by_disk(self, kind: str, ref: MediaRef, disk: DiskCache) -> tuple[Tensor, Packed]:
        # A pipe must not be opened, nor a huge file read.
        limit = self.limits.image_bytes if self.specs[kind].decoder == "image" else self.limits.media_bytes
        check_place(ref.path, limit)
        content = self._content(ref.path)
        key = hashlib.sha256(f"{self._recipes[kind]}/{content.sha256}".encode()).hexdigest() if content else ""
        if content and (packed := disk.get(key)):
            return unpack(packed), packed
        values = self._decoded(kind, ref)
        packed = pack(values)
        if content and self._content(ref.path) == content:
            disk.put(key, packed)
        return values, packed

    def _content(self, path: Place) -> "_Content | None":
        """What a file holds; None for one that has just been changed, or that decoding will have to answer for."""
        if isinstance(path, Slice):  # whatever its file holds, only what has this checksum is ever decoded
            return _Content(path.sha256, ())
        if isinstance(path, Bytes):
            return _Content(_sha256(path), ())
        try:
            status = Path(path).stat()
            # Of the two times the one of the last change of status cannot be set back.
            if time.time_ns() - max(status.st_ctime_ns, status.st_mtime_ns) < SETTLED_NS:
                return None
            stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            known = self._contents.get(str(path))
            if known is None or known.stamp != stamp:
                with Path(path).open("rb") as file:
                    known = _Content(hashlib.file_digest(file, "sha256").hexdigest(), stamp)
                self._contents[str(path)] = known
            return known
        except OSError:
            return None

    def _keep(self, name: tuple[str, str], packed: Packed) -> None:
        size = _bytes(packed)
        if size <= self.max_bytes:
            self._kept[name] = packed
            self.size += size
        while self.size > self.max_bytes:
            self.size -= _bytes(self._kept.popitem(last=False)[1])


class _Content(NamedTuple):
    sha256: str
    stamp: tuple[int, ...]


def _sha256(given: Bytes) -> str:
    return hashlib.sha256(given.data).hexdigest()


def _bytes(packed: Packed) -> int:
    return sum(tensor.nbytes for tensor in packed.values())


def pack(values: Tensor) -> Packed:
    """Values as they are kept: pictures that stem from bytes as bytes again, a quarter of the size, and to the bit.

    Normalisation makes of each of 256 levels one number per channel: `levels` uint8 [..., C, H, W] are the places in
    `palette` float32 [C, 256]. Whatever has more levels, such as a log-mel, is kept as it is.
    """
    if values.ndim < 3 or values.dtype != torch.float32:
        return {"values": values}
    channels = np.moveaxis(values.numpy(), -3, 0).view(np.uint32)  # as bits: -0.0 and NaN must survive
    found = [np.unique(channel, return_inverse=True) for channel in channels]
    if max(len(palette) for palette, _ in found) > 256:
        return {"values": values}
    levels = np.stack([places.reshape(channels.shape[1:]) for _, places in found], axis=-3).astype(np.uint8)
    palette = np.stack([np.pad(palette, (0, 256 - len(palette))) for palette, _ in found])
    return {"levels": torch.from_numpy(levels), "palette": torch.from_numpy(palette.view(np.float32))}


def unpack(packed: Packed) -> Tensor:
    """The values that were packed."""
    if "values" in packed:
        return packed["values"]
    levels, palette = packed["levels"].numpy(), packed["palette"].numpy()
    channels = [palette[channel].take(levels[..., channel, :, :]) for channel in range(len(palette))]
    return torch.from_numpy(np.stack(channels, axis=-3))


def recipe(spec: MediaSpec, limits: Limits = DEFAULTS) -> str:
    """Whatever encoder inputs depend on beside their file, as a SHA-256.

    That is: decoder, frames and limits, the libraries that decode and our own code around them, and what the transform
    makes of invented media. The latter tells any two sizes, crops and normalisations apart, of any encoder, without
    knowing how each writes its settings down.
    """
    digest = hashlib.sha256(repr((spec.decoder, spec.frames, spec.shape, limits)).encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {_version(library)}".encode())
    for source in sorted(Path(media.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    draw = np.random.default_rng(0)
    invented: list[np.ndarray]
    if spec.decoder == "audio":
        invented = [draw.normal(0, 0.1, seconds * media.RATE).astype(np.float32) for seconds in (1, 30)]
    else:  # a small wide picture and a large high one
        invented = [draw.integers(0, 256, size, dtype=np.uint8) for size in ((48, 80, 3), (720, 480, 3))]
    for raw in invented:
        values = spec.transform(raw)
        digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:  # decord has no wheels for some machines
        return None
