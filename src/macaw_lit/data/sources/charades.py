"""Charades: a CSV of videos, each with several descriptions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.files import csv_rows
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import RowError, clean, convert, instruction_of, rest, sample_row
from macaw_lit.types import Rejection, Sample, Turn

INSTRUCTIONS = ("Describe the video.", "What happens in the video?", "Write a caption for this video.")


def sniff(content: Any) -> dict[str, Any] | None:
    """Nothing more is to be said of rows with Charades' columns; None for other formats."""
    return {} if sample_row(content).keys() >= {"id", "descriptions", "script"} else None


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
            texts = [_line(part) for part in (row["descriptions"] or "").split(";")]
            texts = list(dict.fromkeys(filter(None, texts))) or [_line(row.get("script") or "")]
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


def _line(text: str) -> str:
    return " ".join(clean(text).split())
