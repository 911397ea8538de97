"""Macaw-LLM's released instruction data: rows of `id`, `instruction` and `response` on one medium each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from macaw_lit.data.sources.dialogues import join
from macaw_lit.data.sources.files import json_rows
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import convert, field, instruction_of, response_of, rest
from macaw_lit.types import Rejection, Sample, Turn


def read(
    path: Path | str,
    media_root: Roots,
    kind: Literal["image", "video", "audio"],
    source: str | None = None,
    turns: int = 1,
) -> Iterator[Sample | Rejection]:
    """Rows of `{"data": […]}` or of a bare list, in file order.

    `id` names the medium: a file name, a bare video id, or a COCO name of another release. A video's sound comes along
    where it has one. `source` is `macaw_<kind>` unless given. With `turns` above 1, rows on one medium become dialogues
    of at most that many questions.

    Raises:
        DataError: the file cannot be read, is not JSON or of another layout; `media_root` is no folder.
    """
    roots = MediaRoots(media_root)
    source = source or f"macaw_{kind}"

    def build(number: int, row: Any) -> Sample:
        item = field(row, "id")
        instruction, response = instruction_of(row, "instruction"), response_of(row, "response")
        turns = (Turn("user", instruction, roots.refs(kind, item)), Turn("assistant", response))
        return Sample(turns, f"{source}/{item}/{number}", source, rest(row, "instruction", "response"))

    rows = convert(json_rows(path, "data"), build)
    yield from rows if turns == 1 else join(rows, turns)
