"""Rows into samples: the fields a reader asks for, and the causes a row is rejected for."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef, Rejection, Sample

CAUSES = (
    "not_json",
    "not_an_object",
    "missing_key",
    "empty_instruction",
    "empty_response",
    "undisclosed",
    "duplicate",
    "unknown_role",
    "unknown_part",
    "turn_order",
    "media_count",
    "media_missing",
    "media_outside",
    "media_remote",
    "media_embedded",
)
"""Every cause a reader rejects a row for."""


INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff]")
"""Control characters, zero-width spaces and byte order marks; not joiners, which scripts need."""


class RowError(Exception):
    """One row cannot be used: `cause` is one of `CAUSES`. Becomes a `Rejection` and never leaves the readers."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def convert(rows: Iterable[tuple[str, Any]], build: Callable[[int, Any], Sample]) -> Iterator[Sample | Rejection]:
    """Builds a sample of every `(locator, row)`; `build` gets the row's number from 0 and may raise `RowError`.

    A row that is a `RowError` already was not even JSON.
    """
    for number, (locator, row) in enumerate(rows):
        try:
            if isinstance(row, RowError):
                raise row
            yield build(number, row)
        except RowError as error:
            yield Rejection(error.cause, locator, str(error))


def stop_at_first(rows: Iterable[Sample | Rejection]) -> Iterator[Sample]:
    """The samples of a reader that must not reject anything.

    Raises:
        DataError: at the first rejection, with its place and cause.
    """
    for row in rows:
        if isinstance(row, Rejection):
            raise DataError(f"{row.locator}: {row.cause}: {row.detail}; repair the row, or count such rows instead")
        yield row


def sample_row(content: Any, key: str | None = None) -> Mapping[str, Any]:
    """The first object among the rows of a parsed file, by which a reader knows its format; empty if there is none."""
    rows = content.get(key) if key is not None and isinstance(content, Mapping) else content
    return next((row for row in rows if isinstance(row, Mapping)), {}) if isinstance(rows, list) else {}


def field(row: Any, *names: str) -> str:
    """The text under the first of `names` that a row has, stripped, without lone surrogates, which no tokenizer takes.

    Raises:
        RowError: the row is no object, has none of the names or no text there.
    """
    if not isinstance(row, Mapping):
        raise RowError("not_an_object", f"{type(row).__name__}, expected an object")
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise RowError("missing_key", f"no {' or '.join(names)!r}")
    value = row[name]
    if not isinstance(value, str):
        raise RowError("missing_key", f"{name!r} is {type(value).__name__}, expected text")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()


def instruction_of(row: Any, *names: str) -> str:
    """`field` as `clean` has it, which must not be empty: cause `empty_instruction`."""
    return _filled(field(row, *names), "empty_instruction", names)


def response_of(row: Any, *names: str) -> str:
    """`field` as `clean` has it, which must not be empty: cause `empty_response`."""
    return _filled(field(row, *names), "empty_response", names)


def heard(media: Sequence[MediaRef]) -> None:
    """Make sure that a spoken question has a sound: cause `empty_instruction`."""
    if not any(ref.kind == "audio" for ref in media):
        raise RowError("empty_instruction", "the question is spoken, and the row has no sound")


def clean(text: str) -> str:
    """Text in Unicode's composed form (NFC), without invisible characters and white space around it."""
    return unicodedata.normalize("NFC", INVISIBLE.sub("", text)).strip()


def _filled(text: str, cause: str, names: Sequence[str]) -> str:
    text = clean(text)
    if not text:
        raise RowError(cause, f"{names[0]!r} is empty")
    return text


def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The keys of a row that became no part of the dialogue, for `Sample.meta`."""
    return {key: value for key, value in row.items() if key not in used}
