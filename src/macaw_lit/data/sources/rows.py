"""Rows into samples: the fields a reader asks for, and the causes a row is rejected for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from macaw_lit.types import Rejection, Sample

CAUSES = (
    "not_an_object",
    "missing_key",
    "empty_instruction",
    "empty_response",
    "undisclosed",
    "duplicate",
    "media_missing",
    "media_outside",
)
"""Every cause a reader rejects a row for."""


class RowError(Exception):
    """One row cannot be used: `cause` is one of `CAUSES`. Becomes a `Rejection` and never leaves the readers."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def convert(rows: Iterable[tuple[str, Any]], build: Callable[[int, Any], Sample]) -> Iterator[Sample | Rejection]:
    """Builds a sample of every `(locator, row)`; `build` gets the row's number from 0 and may raise `RowError`."""
    for number, (locator, row) in enumerate(rows):
        try:
            yield build(number, row)
        except RowError as error:
            yield Rejection(error.cause, locator, str(error))


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
    """`field` that must not be empty: cause `empty_instruction`."""
    return _filled(field(row, *names), "empty_instruction", names)


def response_of(row: Any, *names: str) -> str:
    """`field` that must not be empty: cause `empty_response`."""
    return _filled(field(row, *names), "empty_response", names)


def _filled(text: str, cause: str, names: Sequence[str]) -> str:
    if not text:
        raise RowError(cause, f"{names[0]!r} is empty")
    return text


def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The keys of a row that became no part of the dialogue, for `Sample.meta`."""
    return {key: value for key, value in row.items() if key not in used}
