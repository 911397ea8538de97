"""Data files into rows: JSON, JSON lines and CSV, packed by gzip or not; a bad file is one error with its place."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from macaw_lit.errors import DataError


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file, with or without byte order mark, packed by gzip or not.

    Raises:
        DataError: missing, no file, damaged, or not UTF-8.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file, expected a data file; check the path")
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise DataError(f"{path}: {found}, expected UTF-8 text; save the file as UTF-8") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason}), expected a data file; check the path") from error


def read_json(path: Path | str) -> Any:
    """What a `.json` file holds; of a `.jsonl` file the list of its lines. Either may be packed by gzip.

    Raises:
        DataError: the file cannot be read or is not JSON.
    """
    text = read_text(path)
    if ".jsonl" in Path(path).suffixes:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [_parse(path, line, number) for number, line in lines]
    return _parse(path, text, 1)


def _parse(path: Path | str, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1} column {error.colno}"
        raise DataError(f"{path}: {error.msg} at {where}, expected JSON; repair or fetch the file again") from error
    except (RecursionError, ValueError) as error:  # ValueError: an integer of more than 4300 digits
        raise DataError(f"{path}: {type(error).__name__} at line {line}, expected JSON of plain rows") from error


def json_rows(path: Path | str, key: str | None = None) -> list[tuple[str, Any]]:
    """`(locator, row)` of a JSON file whose top level is a list, or an object that holds the list under `key`.

    Raises:
        DataError: the file cannot be read, is not JSON or has another top level.
    """
    content = read_json(path)
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
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        missing = [name for name in required if name not in (reader.fieldnames or ())]
        if missing:
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise DataError(f"{path}: columns {found[:200]!r}, expected also {', '.join(missing)}; keep the header row")
        for row in reader:
            yield f"{path}:{reader.line_num}", {str(key): value for key, value in row.items()}
    except csv.Error as error:
        raise DataError(f"{path}: {error} after line {reader.line_num}, expected CSV; repair the row") from error
