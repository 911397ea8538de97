"""Macaw-LLM's instruction data: rows of `instruction` and `response` on the medium `id`, or on media named by kind."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from macaw_lit.data.sources.dialogues import join
from macaw_lit.data.sources.files import json_rows
from macaw_lit.data.sources.roots import MediaRoots, Roots, kind_of
from macaw_lit.data.sources.rows import RowError, convert, field, heard, instruction_of, response_of, rest, sample_row
from macaw_lit.types import MediaRef, Rejection, Sample, Turn

KINDS = ("image", "video", "audio")


def sniff(content: Any) -> dict[str, Any] | None:
    """The kind of the rows' media, by the first `id`; None for other formats."""
    row = sample_row(content, "data")
    if "response" not in row or not row.keys() & {"instruction", "spoken"} or not row.keys() & {"id", *KINDS}:
        return None
    item = str(row.get("id", ""))
    return {"kind": "image" if item.startswith("COCO_") else kind_of(item) or "video"}


def read(
    path: Path | str,
    media_root: Roots,
    kind: Literal["image", "video", "audio"] = "image",
    source: str | None = None,
    turns: int = 1,
) -> Iterator[Sample | Rejection]:
    """Rows of `{"data": […]}` or of a bare list, in file order.

    `id` names the medium of `kind`: a file name, a bare video id, or a COCO name of another release. A row without `id`
    names its media under `image`, `video` and `audio`, as the original's inference files do; there the text "None"
    stands for none. A video's sound comes along where it has one and the row names no other. `source` is `macaw_<kind>`
    unless given. With `turns` above 1, rows on one medium become dialogues of at most that many questions.

    With `"spoken": true` the question is in the row's sound; an `instruction`, if there is one, is its transcript,
    which the model does not see and `meta["transcript"]` keeps.

    Raises:
        DataError: the file cannot be read, is not JSON or of another layout; `media_root` is no folder.
    """
    roots = MediaRoots(media_root)
    source = source or f"macaw_{kind}"

    def build(number: int, row: Any) -> Sample:
        spoken = _spoken(row)
        instruction = "" if spoken else instruction_of(row, "instruction")
        response = response_of(row, "response")
        if row.get("id") is None:
            item, media = _named(row, roots)
        else:
            item = field(row, "id")
            media = roots.refs(kind, item)
        meta = rest(row, "instruction", "response")
        if spoken:
            heard(media)
            meta |= {"transcript": row["instruction"]} if row.get("instruction") else {}
        turns = (Turn("user", instruction, media, spoken), Turn("assistant", response))
        return Sample(turns, f"{source}/{item}/{number}", source, meta)

    rows = convert(json_rows(path, "data"), build)
    yield from rows if turns == 1 else join(rows, turns)


def _spoken(row: Any) -> bool:
    given = row.get("spoken", False) if isinstance(row, Mapping) else False
    if not isinstance(given, bool):
        raise RowError("missing_key", f"'spoken' is {type(given).__name__}, expected true or false")
    return given


def _named(row: Any, roots: MediaRoots) -> tuple[str, tuple[MediaRef, ...]]:
    """The first name and the media of a row that names them by kind."""
    names = {kind: field(row, kind) for kind in KINDS if row.get(kind) not in (None, "", "None")}
    if not names and not any(kind in row for kind in KINDS):
        raise RowError("missing_key", "no 'id', and no 'image', 'video' or 'audio'")
    media = [ref for kind, name in names.items() for ref in roots.refs(kind, name)]
    if "audio" in names and "video" in names:
        media = [ref for ref in media if ref.kind != "audio"] + media[-1:]
    return next(iter(names.values()), "text"), tuple(media)
