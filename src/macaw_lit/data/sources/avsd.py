"""AVSD: dialogues about videos with sound, in the challenge's layout and in the original one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.files import read_json, rows_of
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import RowError, convert, instruction_of, response_of, rest, sample_row
from macaw_lit.types import Rejection, Sample, Turn

UNDISCLOSED = "__UNDISCLOSED__"
"""What test files hold in place of an answer."""


def sniff(content: Any) -> dict[str, Any] | None:
    """Nothing more is to be said of dialogues in either layout; None for other formats."""
    if isinstance(content, dict) and "dialogs" not in content:
        content = [row for row in content.values() if isinstance(row, dict)]
        return {} if isinstance(sample_row(content).get("data"), list) else None
    row = sample_row(content, "dialogs")
    return {} if "image_id" in row and "dialog" in row else None


def read(path: Path | str, media_root: Roots, source: str = "avsd") -> Iterator[Sample | Rejection]:
    """One sample of several turns per dialogue in file order, video and sound on its first turn.

    Layouts: `{"dialogs": [{"image_id", "dialog"}]}` and `{"<id>": {"data"}}`. Questions without a disclosed answer are
    left out and counted in `meta["turns_left_out"]`; a dialogue that has no other is rejected.

    Raises:
        DataError: the file cannot be read, is not JSON or of another layout; `media_root` is no folder.
    """
    roots = MediaRoots(media_root)

    def build(number: int, row: Any) -> Sample:
        item = instruction_of(row, "image_id")
        pairs = row.get("dialog", row.get("data"))
        if not isinstance(pairs, list) or not pairs:
            raise RowError("missing_key", "no 'dialog' with question and answer")
        turns, faults = _turns(pairs)
        if not turns:
            raise faults[0]
        first = Turn("user", turns[0].text, roots.refs("video", item))
        meta = rest(row, "dialog", "data") | ({"turns_left_out": len(faults)} if faults else {})
        return Sample((first, *turns[1:]), f"{source}/{item}/{number}", source, meta)

    yield from convert(_dialogues(path), build)


def _dialogues(path: Path | str) -> list[tuple[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict) or "dialogs" in content:
        return rows_of(path, content, "dialogs")
    rows = content.items()
    return [(f"{path}[{key!r}]", {"image_id": key, **row} if isinstance(row, dict) else row) for key, row in rows]


def _turns(pairs: list[Any]) -> tuple[list[Turn], list[RowError]]:
    turns: list[Turn] = []
    faults: list[RowError] = []
    for pair in pairs:
        try:
            question, answer = instruction_of(pair, "question"), response_of(pair, "answer")
            if answer == UNDISCLOSED:
                raise RowError("undisclosed", "no answer is disclosed")
            turns += [Turn("user", question), Turn("assistant", answer)]
        except RowError as fault:
            faults.append(fault)
    return turns, faults
