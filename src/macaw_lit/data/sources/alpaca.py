"""Alpaca's text tasks: a list of `instruction`, `input` and `output`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.files import json_rows
from macaw_lit.data.sources.rows import clean, convert, field, instruction_of, response_of, rest, sample_row
from macaw_lit.types import Rejection, Sample, Turn

NO_INPUT = ("", "nan", "<noinput>", "no input")
"""What the released file and its descendants write for an absent input, in lower case."""


def sniff(content: Any) -> dict[str, Any] | None:
    """Nothing more is to be said of rows with an instruction and an output; None for other formats."""
    row = sample_row(content)
    return {} if "instruction" in row and ("output" in row or ("response" in row and "input" in row)) else None


def read(path: Path | str, source: str = "alpaca") -> Iterator[Sample | Rejection]:
    """Rows of an Alpaca file in file order; an input, if there is one, goes to `meta["input"]`.

    Raises:
        DataError: the file cannot be read, is not JSON or no list.
    """
    item = Path(path).name.partition(".")[0]

    def build(number: int, row: Any) -> Sample:
        turns = (
            Turn("user", instruction_of(row, "instruction")),
            Turn("assistant", response_of(row, "output", "response")),
        )
        meta = rest(row, "instruction", "input", "output", "response")
        text = "" if row.get("input") is None else clean(field(row, "input"))
        if text.lower() not in NO_INPUT:
            meta["input"] = text
        return Sample(turns, f"{source}/{item}/{number}", source, meta)

    yield from convert(json_rows(path), build)
