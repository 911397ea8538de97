"""Samples and their media in tars that `tar` and WebDataset read too, with an index of where everything is."""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macaw_lit.data.media import name_of, open_place
from macaw_lit.data.sources.packed import FORMAT, INDEX, read_index, rows_of_shard, sample_of
from macaw_lit.data.sources.rows import RowError
from macaw_lit.errors import DataError, MediaError
from macaw_lit.files import PART, write_whole
from macaw_lit.types import Bytes, Place, Sample, Slice

Track = Callable[[Iterable[Sample], int], Iterable[Sample]]


def write_shards(
    samples: Sequence[Sample],
    folder: Path,
    shard_bytes: int,
    account: dict[str, Any],
    track: Track = lambda samples, total: samples,
) -> dict[str, Any]:
    """Writes the samples in order, every medium once; goes on where an earlier call with the same samples stopped.

    Equal samples and media give equal bytes. A shard is there whole or not at all; the index names it afterwards. The
    largest row must fit into memory.

    Args:
        shard_bytes: a tar is ended before it grows over this; a larger row has one of its own.
        account: what else the index is to say.
        track: gets the samples and how many there are, and passes them on: a progress bar.

    Returns:
        The index.

    Raises:
        DataError: the folder holds something else, or a medium or the folder fails.
    """
    writer = _Writer(folder, shard_bytes)
    try:
        done = writer.resume(samples)
        for number, sample in enumerate(track(samples, len(samples))):
            if number >= done:
                writer.add(number, sample)
        writer.end_shard()
        writer.save({"complete": True, "rows": len(samples)} | account)
    except MediaError as error:
        raise DataError(f"{error}; it was whole when it was examined: run the same command again") from error
    except OSError as error:
        remedy = "free space or make it writable and run the same command again: it goes on"
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); {remedy}") from error
    return writer.index


@dataclass
class _Shard:
    """What will be the next tar, and the lines of its index."""

    tar: bytearray = field(default_factory=bytearray)
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, data: bytes) -> int:
        """Appends a member and returns where its data begin."""
        info = tarfile.TarInfo(name)  # of no owner, and of no time: equal input gives equal bytes
        info.size = len(data)
        self.tar += info.tobuf(tarfile.USTAR_FORMAT)
        start = len(self.tar)
        self.tar += data
        self.tar += bytes(-len(data) % tarfile.BLOCKSIZE)
        return start


class _Writer:
    """Shards of one folder as they grow; what is finished is in the index on disk."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder = folder
        self.index: dict[str, Any] = {"format": FORMAT, "complete": False, "shard_bytes": shard_bytes, "shards": []}
        self.shard = _Shard()
        self.stored: dict[str, Slice] = {}  # checksum → where the medium is
        self.known: dict[str, str] = {}  # place → checksum

    def resume(self, samples: Sequence[Sample]) -> int:
        """How many of the samples are packed already."""
        if not (self.folder / INDEX).is_file():
            if self.folder.is_dir() and {path.name for path in self.folder.iterdir()} - {f"{INDEX}{PART}"}:
                raise DataError(f"{self.folder}: holds other files, expected packed data; give another folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            self.save({})
            return 0
        found = read_index(self.folder)
        self.index["shards"] = found["shards"]
        done = self._same_rows(samples) if found.get("shard_bytes") == self.index["shard_bytes"] else -1
        if done < 0 or (found.get("complete") and done < len(samples)):
            other = "holds other data or settings than these, or media that have changed since"
            raise DataError(f"{self.folder}: {other}; remove the folder, or give another one")
        return done

    def _same_rows(self, samples: Sequence[Sample]) -> int:
        """The number of packed rows if they are the first of `samples`; -1 if they are not."""
        tars = {shard["name"]: self.folder / shard["name"] for shard in self.index["shards"]}
        done = 0
        for shard in self.index["shards"]:
            rows = rows_of_shard(self.folder, shard)
            written = tars[shard["name"]].stat().st_mtime_ns
            for (_, row), sample in zip(rows, samples[done:], strict=False):
                try:
                    if not self._same(sample_of(row, tars), sample, written):
                        return -1
                except RowError:
                    return -1
            done += len(rows)
        return done if done <= len(samples) else -1

    def _same(self, packed: Sample, sample: Sample, written: int) -> bool:
        """Whether a packed row is this one, with media that have not changed since."""
        refs = [ref for turn in sample.turns for ref in turn.media]
        slices = [ref.path for turn in packed.turns for ref in turn.media]
        for ref, place in zip(refs, slices, strict=False):
            assert isinstance(place, Slice)
            self.stored.setdefault(place.sha256, place)
            if isinstance(ref.path, Slice) and ref.path.sha256 != place.sha256:
                return False
            if isinstance(ref.path, Bytes) and hashlib.sha256(ref.path.data).hexdigest() != place.sha256:
                return False
            if not isinstance(ref.path, str | Path):
                continue
            status = Path(ref.path).stat()
            if status.st_size != place.size or status.st_mtime_ns > written:
                return False
        return _plain(packed) == _plain(sample)

    def add(self, number: int, sample: Sample) -> None:
        """Puts a row and those of its media that are not packed yet behind what is there."""
        fresh: dict[str, tuple[str, bytes]] = {}
        for turn in sample.turns:
            for ref in turn.media:
                self._look_at(ref.path, fresh)
        room = sum(len(data) + 2 * tarfile.BLOCKSIZE for _, data in fresh.values())
        if self.shard.lines and len(self.shard.tar) + room > self.index["shard_bytes"]:
            self.end_shard()
        tar = self.folder / self._name()
        for place, (checksum, (name, data)) in enumerate(fresh.items()):
            start = self.shard.add(f"{number:09d}.{place}{_suffix(name)}", data)
            self.stored[checksum] = Slice(tar, start, len(data), name, checksum)
        line = _line(sample, self.known, self.stored)
        self.shard.add(f"{number:09d}.json", line.encode("ascii"))
        self.shard.lines.append(line)

    def _look_at(self, place: Place, fresh: dict[str, tuple[str, bytes]]) -> None:
        if str(place) in self.known:
            return
        with open_place(place) as file:
            data = file.read()
        checksum = hashlib.sha256(data).hexdigest()
        self.known[str(place)] = checksum
        if checksum not in self.stored:
            fresh[checksum] = (name_of(place), data)

    def _name(self) -> str:
        return f"{len(self.index['shards']):06d}.tar"

    def end_shard(self) -> None:
        """Writes what has gathered, and the index that knows of it."""
        if not self.shard.lines:
            return
        tar = self.shard.tar
        tar += bytes(2 * tarfile.BLOCKSIZE)
        lines = "".join(f"{line}\n" for line in self.shard.lines).encode("ascii")
        name = self._name()
        write_whole(self.folder / name, tar)
        write_whole(self.folder / f"{name}.jsonl", lines)
        self.index["shards"].append(
            {
                "name": name,
                "rows": len(self.shard.lines),
                "bytes": len(tar),
                "sha256": hashlib.sha256(tar).hexdigest(),
                "rows_sha256": hashlib.sha256(lines).hexdigest(),
            }
        )
        self.shard = _Shard()
        self.save({})

    def save(self, more: dict[str, Any]) -> None:
        self.index |= more
        write_whole(self.folder / INDEX, (json.dumps(self.index, indent=1) + "\n").encode("ascii"))


def _line(sample: Sample, known: dict[str, str], stored: dict[str, Slice]) -> str:
    """A row as JSON; the media of its turns say in which tar and where they are."""
    row = _plain(sample)
    for turn, given in zip(row["turns"], sample.turns, strict=True):
        for medium, ref in zip(turn["media"], given.media, strict=True):
            place = stored[known[str(ref.path)]]
            medium |= {"shard": name_of(place.path), "offset": place.offset, "size": place.size, "sha256": place.sha256}
    return json.dumps(row)


def _plain(sample: Sample) -> dict[str, Any]:
    """What a row is, apart from where its media are."""
    turns = [
        {
            "role": turn.role,
            "text": turn.text,
            "media": [{"kind": ref.kind, "name": name_of(ref.path)} for ref in turn.media],
            "spoken": turn.spoken,
        }
        for turn in sample.turns
    ]
    row = {"uid": sample.uid, "source": sample.source, "turns": turns, "meta": dict(sample.meta)}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(row))
    except (TypeError, ValueError) as error:
        raise DataError(f"{sample.uid}: meta that JSON cannot hold ({error}); have its reader leave it out") from error
    return plain


def _suffix(name: str) -> str:
    found = re.search(r"\.[a-z0-9]{1,8}\Z", name.lower())
    return found[0] if found else ".bin"
