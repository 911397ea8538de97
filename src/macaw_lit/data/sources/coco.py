"""COCO captions, of pictures or of sounds in the same format, as descriptions of the medium."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from macaw_lit.data.sources.files import read_json, rows_of
from macaw_lit.data.sources.roots import MediaRoots, Roots, kind_of
from macaw_lit.data.sources.rows import RowError, convert, field, response_of, rest, sample_row
from macaw_lit.types import Rejection, Sample, Turn

INSTRUCTIONS = {
    "image": ("Describe the picture.", "What does the picture show?", "Write a caption for this picture."),
    "audio": ("Describe the sound.", "What can be heard?", "Write a caption for this sound."),
}


def sniff(content: Any) -> dict[str, Any] | None:
    """What `read` needs to be told of a file of captions; None for other formats."""
    picture = sample_row(content, "images")
    if isinstance(content, list) or "file_name" not in picture or "caption" not in sample_row(content, "annotations"):
        return None
    return {"kind": "audio" if kind_of(picture["file_name"]) == "audio" else "image"}


def read(
    path: Path | str,
    media_root: Roots,
    kind: Literal["image", "audio"] = "image",
    source: str | None = None,
    instructions: Sequence[str] = (),
) -> Iterator[Sample | Rejection]:
    """One sample per caption in file order; the instructions (by default those of the kind) take turns.

    A picture is sought under its `file_name`, then under the names of COCO's 2014 and 2017 releases. A caption that
    repeats one of the same medium, but for case and white space, is rejected. `source` is `coco` or `coco_audio` unless
    given.

    Raises:
        DataError: the file cannot be read, is not JSON or lacks `images` or `annotations`; `media_root` is no folder.
    """
    roots = MediaRoots(media_root)
    source = source or ("coco" if kind == "image" else f"coco_{kind}")
    phrasings = instructions or INSTRUCTIONS[kind]
    content = read_json(path)
    names = {row.get("id"): row for _, row in rows_of(path, content, "images") if _is_named(row)}
    seen: set[tuple[Any, str]] = set()

    def build(number: int, row: Any) -> Sample:
        caption = " ".join(response_of(row, "caption").split())
        item = row.get("image_id")
        if not isinstance(item, int | str) or item not in names:
            raise RowError("missing_key", f"image_id {item!r} is not among the images")
        if (item, caption.casefold()) in seen:
            raise RowError("duplicate", f"caption of {item!r} stands twice")
        seen.add((item, caption.casefold()))
        media = roots.refs(kind, field(names[item], "file_name"))
        turns = (Turn("user", phrasings[number % len(phrasings)], media), Turn("assistant", caption))
        return Sample(turns, f"{source}/{item}/{number}", source, rest(row, "caption"))

    yield from convert(rows_of(path, content, "annotations"), build)


def _is_named(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("id"), int | str)
