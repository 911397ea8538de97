"""Charades: a CSV of videos, each with several descriptions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.files import csv_rows
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import RowError, convert, instruction_of, rest
from macaw_lit.types import Rejection, Sample, Turn

INSTRUCTIONS = ("Describe the video.", "What happens in the video?", "Write a caption for this video.")


def read(
    path: Path | str, media_root: Roots, source: str = "charades", instructions: Sequence[str] = INSTRUCTIONS
) -> Iterator[Sample | Rejection]:
    """One sample per description in file order, or of the script where a row has none; the instructions take turns.

    Raises:
        DataError: the file cannot be read, is not CSV or lacks `id` or `descriptions`; `media_root` is no folder.
    """
    roots = MediaRoots(media_root)

    def descriptions() -> Iterator[tuple[str, Any]]:
        for line, (locator, row) in enumerate(csv_rows(path, ("id", "descriptions"))):
            texts = [" ".join(part.split()) for part in (row["descriptions"] or "").split(";")]
            texts = list(dict.fromkeys(filter(None, texts))) or [" ".join((row.get("script") or "").split())]
            yield from ((locator, (f"{line}.{part}", text, row)) for part, text in enumerate(texts))

    def build(number: int, entry: Any) -> Sample:
        place, text, row = entry
        item = instruction_of(row, "id")
        if not text:
            raise RowError("empty_response", "no description and no script")
        turns = (
            Turn("user", instructions[number % len(instructions)], roots.refs("video", item)),
            Turn("assistant", text),
        )
        return Sample(turns, f"{source}/{item}/{place}", source, rest(row, "descriptions"))

    yield from convert(descriptions(), build)
