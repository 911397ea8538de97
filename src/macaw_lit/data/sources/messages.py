"""OpenAI's and Hugging Face's dialogues: rows of `messages`, whose contents are texts or lists of parts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.chat import read_dialogues
from macaw_lit.data.sources.roots import Roots
from macaw_lit.data.sources.rows import sample_row
from macaw_lit.types import Rejection, Sample


def sniff(content: Any) -> dict[str, Any] | None:
    """Nothing more is to be said of rows with messages; None for other formats."""
    return {} if isinstance(sample_row(content).get("messages"), list) else None


def read(path: Path | str, media_root: Roots, source: str = "messages") -> Iterator[Sample | Rejection]:
    """Rows of `{"messages": [{"role": …, "content": …}]}` in file order, with all turns.

    A part is `text`, or a medium: `image`, `image_url` and their likes for `video` and `audio`, which name a file under
    `media_root` or, empty, take the next medium of the row's columns (`images`, …). Media that the row itself holds
    (`data:`, `input_audio`) are decoded; addresses of a network reject the row. A user's parts with a sound and no text
    at all are a spoken question. Columns, markers in plain text and a last question without an answer are treated as in
    `conversations`.

    Raises:
        DataError: the file cannot be read, is not JSON or no list of rows; `media_root` is no folder.
    """
    return read_dialogues(path, media_root, source, "messages")
