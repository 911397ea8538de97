"""Data files into rows: JSON, JSON lines and CSV, packed by gzip or not; a bad file is one error with its place."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.rows import RowError
from macaw_lit.errors import DataError, in_one_line

MAX_BYTES = 4 * 2**30
"""Largest data file that is read, unpacked; VQAv2's, the largest in use, have under half a gigabyte."""

LINES = {".jsonl", ".ndjson"}
"""Suffixes of files with one JSON value per line."""


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file, with or without byte order mark, packed by gzip or not.

    Raises:
        DataError: missing, no file, damaged, not UTF-8, or larger than `MAX_BYTES`.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file, expected a data file; check the path")
    try:
        with Path(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DataError(f"{path}: over {MAX_BYTES} bytes of data, expected fewer; split it into several files")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise DataError(f"{path}: {found}, expected UTF-8 text; save the file as UTF-8") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason}), expected a data file; check the path") from error


def read_json(path: Path | str) -> Any:
    """What a JSON file holds; of one with a value per line, by its suffix or by its content, the `Lines`.

    Raises:
        DataError: the file cannot be read or is not JSON.
    """
    text = read_text(path)
    if LINES & set(Path(path).suffixes):
        return Lines(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_one_line(text[: error.pos]):
            return Lines(text)
        where = f"line {error.lineno} column {error.colno}"
        raise DataError(f"{path}: {error.msg} at {where}, expected JSON; repair or fetch the file again") from error
    except (RecursionError, ValueError) as error:  # ValueError: an integer of more than 4300 digits
        raise DataError(f"{path}: {type(error).__name__}, expected JSON of plain rows; repair the file") from error


class Lines(list[Any]):
    """The values of a file with one per line; a line that is not JSON is a `RowError`, so that the others can be used.

    Attributes:
        numbers: the line of each value, from 1; empty lines are passed over.
    """

    def __init__(self, text: str) -> None:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        super().__init__(_parse_line(line) for _, line in lines)
        self.numbers = [number for number, _ in lines]


def _is_one_line(text: str) -> bool:
    return text.endswith("\n") and "\n" not in text.strip()


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return RowError("not_json", in_one_line(error))


def json_rows(path: Path | str, key: str | None = None) -> list[tuple[str, Any]]:
    """`rows_of` what a JSON file holds.

    Raises:
        DataError: the file cannot be read, is not JSON or has another top level.
    """
    return rows_of(path, read_json(path), key)


def rows_of(path: Path | str, content: Any, key: str | None = None) -> list[tuple[str, Any]]:
    """`(locator, row)` of a top level that is a list, or an object that holds the list under `key`.

    Raises:
        DataError: another top level.
    """
    if isinstance(content, Lines):
        return [(f"{path}:{number}", row) for number, row in zip(content.numbers, content, strict=True)]
    rows = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(rows, list):
        found = (
            f"an object with {', '.join(map(repr, content))}" if isinstance(content, dict) else type(content).__name__
        )
        expected = "a list of rows" + (f", or an object with such a list under {key!r}" if key else "")
        raise DataError(
            f"{path}: top level is {found[:80]}, expected {expected}; check that the format fits the reader"
        )
    return [(f"{path}[{number}]", row) for number, row in enumerate(rows)]


def csv_rows(path: Path | str, required: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(locator, row)` of a CSV file with a header; quoted fields may hold commas and line breaks.

    Raises:
        DataError: the file cannot be read, lacks a required column or breaks the CSV rules.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)  # or an open quote eats rows
    try:
        missing = [name for name in required if name not in (reader.fieldnames or ())]
        if missing:
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise DataError(f"{path}: columns {found[:200]!r}, expected also {', '.join(missing)}; keep the header row")
        for row in reader:
            yield f"{path}:{reader.line_num}", {str(key): value for key, value in row.items()}
    except csv.Error as error:
        raise DataError(f"{path}: {error} after line {reader.line_num}, expected CSV; repair the row") from error
