"""LLaVA's and ShareGPT's dialogues: rows of `conversations`, with their media in columns and markers in the text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.chat import read_dialogues
from macaw_lit.data.sources.roots import Roots
from macaw_lit.data.sources.rows import sample_row
from macaw_lit.types import Rejection, Sample


def sniff(content: Any) -> dict[str, Any] | None:
    """Nothing more is to be said of rows with conversations; None for other formats."""
    return {} if isinstance(sample_row(content).get("conversations"), list) else None


def read(path: Path | str, media_root: Roots, source: str = "conversations") -> Iterator[Sample | Rejection]:
    """Rows of `{"conversations": [{"from": …, "value": …}]}` in file order, with all turns.

    Media stand under `image`, `video`, `audio` or their plurals: a name or a list of names. `<image>` in a user's text
    is taken out, and the next picture belongs to that turn; media without a marker belong to the first question. More
    markers than media, or a marker alone on the first or last line where the row has no such medium, reject the row.
    A last question without an answer is left out and counted in `meta["turns_left_out"]`.

    Raises:
        DataError: the file cannot be read, is not JSON or no list of rows; `media_root` is no folder.
    """
    return read_dialogues(path, media_root, source, "conversations")
