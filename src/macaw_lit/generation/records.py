"""What instructions are made from: the captions of one medium, read by the readers of `data.sources`."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from macaw_lit.data.sources import avsd, charades, coco
from macaw_lit.data.sources.files import json_rows
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import RowError, clean, field
from macaw_lit.errors import ConfigError
from macaw_lit.types import MediaRef, Rejection, Sample, Turn


@dataclass(frozen=True)
class Record:
    """All that is written about one medium.

    Attributes:
        id: the medium's name under its root, a video's without suffix, as the Macaw reader finds it.
        source: the data set.
        texts: captions, each once; `transcript` is what is said in it.
        refs: the annotations that the texts are from.
    """

    id: str
    kind: str
    source: str
    texts: tuple[str, ...]
    transcript: str = ""
    refs: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        return asdict(self)


def read_records(source: str, path: Path, media_root: Roots, kind: str = "image") -> Iterator[Record | Rejection]:
    """The media of a file of captions with their texts, in file order; a medium that is not there is a rejection.

    Args:
        source: coco, charades, avsd, or captions: rows `{"id", "caption" or "captions", "transcript"}`.
        kind: of the media of coco (image or audio) and captions.

    Raises:
        ConfigError: no such source, or a kind that it cannot have.
        DataError: the file cannot be read or has another layout.
    """
    if source not in READERS or kind not in KINDS[source]:
        names = ", ".join(f"{name} ({', '.join(kinds)})" for name, kinds in KINDS.items())
        raise ConfigError(f"source={source} kind={kind}: expected one of {names}")
    roots = MediaRoots(media_root)
    texts: dict[MediaRef, list[str]] = {}
    refs: dict[MediaRef, list[str]] = {}
    transcripts: dict[MediaRef, str] = {}
    for row in READERS[source](path, media_root, kind):
        if isinstance(row, Rejection):
            yield row
            continue
        ref = row.turns[0].media[0]
        texts.setdefault(ref, []).extend(_texts(source, row))
        refs.setdefault(ref, []).append(row.uid)
        if row.meta.get("transcript"):
            transcripts[ref] = row.meta["transcript"]
    for ref, found in texts.items():
        captions = tuple(dict.fromkeys(filter(None, map(_line, found))))
        yield Record(_name(ref, roots), ref.kind, source, captions, transcripts.get(ref, ""), tuple(refs[ref]))


def choose(records: list[Record], count: int | None, seed: int) -> list[Record]:
    """`count` of the records in their own order, drawn without replacement; all with None or where there are fewer."""
    if count is None or count >= len(records):
        return records
    return [records[place] for place in sorted(random.Random(seed).sample(range(len(records)), count))]


def _texts(source: str, row: Sample) -> Iterable[str]:
    """What a reader's sample says of its medium: answers that are captions, AVSD's fields and its dialogue."""
    if source != "avsd":
        script = row.meta.get("script")
        return [row.turns[-1].text, script] if isinstance(script, str) else [row.turns[-1].text]
    fields = [row.meta.get(name) for name in ("caption", "summary", "script")]
    dialogue = [f"{asked.text} {said.text}" for asked, said in zip(row.turns[::2], row.turns[1::2], strict=True)]
    return [text for text in fields if isinstance(text, str)] + dialogue


def _captions(path: Path, media_root: Roots, kind: str) -> Iterator[Sample | Rejection]:
    """Rows of the plain format, one sample per caption."""
    roots = MediaRoots(media_root)
    for number, (locator, row) in enumerate(json_rows(path)):
        try:
            if isinstance(row, RowError):
                raise row
            media = roots.refs(kind, field(row, "id"))
            given = row.get("captions")
            captions = [field({"captions": text}, "captions") for text in given] if isinstance(given, list) else []
            captions = captions or ([field(row, "caption", "captions")] if not row.get("transcript") else [""])
            meta = {"transcript": clean(field(row, "transcript"))} if row.get("transcript") else {}
        except RowError as error:
            yield Rejection(error.cause, locator, str(error))
            continue
        for part, caption in enumerate(captions):
            turns = (Turn("user", "", media), Turn("assistant", caption))
            yield Sample(turns, f"captions/{number}/{part}", "captions", meta)


def _line(text: str) -> str:
    return " ".join(clean(text).split())


def _name(ref: MediaRef, roots: MediaRoots) -> str:
    path = Path(str(ref.path))
    root = next(root for root in roots.roots if path.is_relative_to(root))
    path = path.relative_to(root)
    return (path.with_suffix("") if ref.kind == "video" else path).as_posix()


Reader = Callable[[Path, Roots, str], Iterator[Sample | Rejection]]
READERS: dict[str, Reader] = {
    "coco": lambda path, root, kind: coco.read(path, root, kind),  # type: ignore[arg-type]  # KINDS has checked it
    "charades": lambda path, root, kind: charades.read(path, root),
    "avsd": lambda path, root, kind: avsd.read(path, root),
    "captions": _captions,
}
KINDS = {
    "coco": ("image", "audio"),
    "charades": ("video",),
    "avsd": ("video",),
    "captions": ("image", "video", "audio"),
}
