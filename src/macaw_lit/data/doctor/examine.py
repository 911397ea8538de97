"""Every medium once, in child processes; verdicts are kept in a journal for as long as a file is unchanged."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from macaw_lit import __version__
from macaw_lit.data.doctor.pool import Failure, run
from macaw_lit.data.media import load, probe, thumbnail
from macaw_lit.errors import MediaError, in_one_line
from macaw_lit.types import MediaRef, Place, Slice

Mode = Literal["header", "full"]
FRAMES = 8
"""Frames that are decoded of a video, over its whole length."""


class Medium(NamedTuple):
    """What is examined: a file as one kind of medium. A video and its sound are two."""

    kind: str
    path: Place

    @classmethod
    def of(cls, ref: MediaRef) -> "Medium":
        """That of a ref; the same for a path and its text."""
        return cls(ref.kind, str(ref.path) if isinstance(ref.path, Path) else ref.path)


@dataclass(frozen=True)
class Verdict:
    """What was found: the cause for which training would skip a medium, None if it can be used, and oddities."""

    cause: str | None = None
    detail: str = ""
    odd: tuple[str, ...] = ()


def examine(medium: Medium, mode: Mode = "full") -> Verdict:
    """The verdict on one medium. `header` trusts what the header says, `full` decodes as training does.

    Whatever a decoding library raises is a verdict too: `crashed`.
    """
    odd: tuple[str, ...] = ()
    try:
        odd = probe(medium.path, medium.kind)
        if mode == "full" and medium.kind in ("image", "video", "audio"):
            values = load(medium.path, medium.kind, FRAMES)  # type: ignore[arg-type]
            odd += ("silent",) if medium.kind == "audio" and not values.any() else ()
        return Verdict(odd=odd)
    except MediaError as error:
        return Verdict(error.cause, str(error), odd)
    except Exception as error:
        return Verdict("crashed", f"{str(medium.path)!r}: {type(error).__name__}: {in_one_line(error)}", odd)


def small_picture(medium: Medium) -> bytes | None:
    """A thumbnail of one medium, a JPEG, where it shows anything; in a child process, as it may hang or crash too."""
    return thumbnail(medium.path, medium.kind)


def examine_all(
    media: Iterable[Medium],
    journal: Path,
    mode: Mode = "full",
    workers: int = 1,
    seconds: float = 30.0,
    track: Callable[[Iterator[Medium], int], Iterable[Medium]] = lambda done, total: done,
) -> dict[Medium, Verdict]:
    """The verdicts on all media; an unchanged file whose verdict stands in the journal is not opened again.

    Args:
        journal: a file of JSON lines that verdicts are appended to as they come, so that a run can be broken off at any
            time. A file is known by name, size and time of change. Time-outs and crashes are not kept.
        workers, seconds: processes, and the most that one medium may take.
        track: gets the media as they are done and how many there are, and passes them on: a progress bar.
    """
    names = list(dict.fromkeys(media))
    keys = {medium: _key(medium, mode) for medium in names}
    known = _read(journal)
    verdicts = {medium: known[keys[medium]] for medium in names if keys[medium] in known}
    journal.parent.mkdir(parents=True, exist_ok=True)

    def work() -> Iterator[Medium]:
        yield from list(verdicts)
        with journal.open("a", encoding="ascii") as file:
            file.write("\n" if _is_torn(journal) else "")
            left = [medium for medium in names if medium not in verdicts]
            for medium, found in run(partial(examine, mode=mode), left, workers, seconds):
                if isinstance(found, Failure):
                    verdicts[medium] = Verdict(found.cause, f"{str(medium.path)!r}: {found.detail}; replace the file")
                else:
                    verdicts[medium] = found
                    file.write(json.dumps([keys[medium], found.cause, found.detail, found.odd]) + "\n")
                    file.flush()
                yield medium

    for _ in track(work(), len(names)):
        pass
    return {medium: verdicts[medium] for medium in names}


def _key(medium: Medium, mode: Mode) -> str:
    """What a verdict depends on."""
    try:
        status = Path(medium.path.path if isinstance(medium.path, Slice) else str(medium.path)).stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}"
    except (OSError, ValueError):
        stamp = "missing"
    return f"{__version__} {mode} {stamp} {medium.kind} {medium.path}"


def _read(journal: Path) -> Mapping[str, Verdict]:
    """The verdicts of a journal; what is no verdict, such as a line that was torn off, is sought again."""
    known: dict[str, Verdict] = {}
    if not journal.is_file():
        return known
    for line in journal.read_bytes().splitlines():
        try:
            key, cause, detail, odd = json.loads(line)
            known[key] = Verdict(cause, detail, tuple(odd))
        except (ValueError, TypeError):
            continue
    return known


def _is_torn(journal: Path) -> bool:
    with journal.open("rb") as file:
        file.seek(-min(1, file.seek(0, 2)), 2)
        return file.read() not in (b"", b"\n")
