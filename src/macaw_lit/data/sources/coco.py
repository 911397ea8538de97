"""COCO captions, of pictures or of sounds in the same format, as descriptions of the medium."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from macaw_lit.data.sources.files import json_rows
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import RowError, convert, field, response_of, rest
from macaw_lit.types import Rejection, Sample, Turn

INSTRUCTIONS = {
    "image": ("Describe the picture.", "What does the picture show?", "Write a caption for this picture."),
    "audio": ("Describe the sound.", "What can be heard?", "Write a caption for this sound."),
}


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
    names = {row.get("id"): row for _, row in json_rows(path, "images") if isinstance(row, dict)}
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

    yield from convert(json_rows(path, "annotations"), build)
