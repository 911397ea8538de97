"""Karpathy's split of COCO and Flickr30k, which captioning papers report: pictures with their sentences."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from macaw_lit.data.sources.coco import INSTRUCTIONS
from macaw_lit.data.sources.files import json_rows
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import RowError, convert, field, response_of, rest, sample_row
from macaw_lit.types import Rejection, Sample, Turn

TRAIN = ("train", "restval")
"""The splits that papers train on; the others are `val` and `test`."""


def sniff(content: Any) -> dict[str, Any] | None:
    """Nothing more is to be said of pictures with sentences; None for other formats."""
    return {} if {"filename", "sentences"} <= sample_row(content, "images").keys() else None


def read(
    path: Path | str,
    media_root: Roots,
    splits: Sequence[str] = TRAIN,
    source: str = "karpathy",
    instructions: Sequence[str] = INSTRUCTIONS["image"],
) -> Iterator[Sample | Rejection]:
    """One sample per sentence of the pictures of `splits`, in file order; the instructions take turns.

    A picture is sought under `filepath`/`filename`, then as the COCO reader does. Pictures of other splits are passed
    over: they are not rejected.

    Raises:
        DataError: the file cannot be read, is not JSON or lacks `images`; `media_root` is no folder.
    """
    roots = MediaRoots(media_root)

    def sentences() -> Iterator[tuple[str, Any]]:
        for locator, row in json_rows(path, "images"):
            found = row.get("sentences") if isinstance(row, dict) else None
            if isinstance(row, dict) and row.get("split") not in splits:
                continue
            if not isinstance(found, list):
                fault = RowError("missing_key", "no 'sentences'") if isinstance(row, dict) else row
                yield locator, fault if isinstance(fault, RowError) else RowError("not_an_object", "expected an object")
                continue
            yield from ((f"{locator}.sentences[{part}]", (sentence, row)) for part, sentence in enumerate(found))

    def build(number: int, entry: Any) -> Sample:
        sentence, row = entry
        caption = " ".join(response_of(sentence, "raw").split())
        name = field(row, "filename")
        folder = row.get("filepath")
        media = roots.refs("image", str(PurePosixPath(folder, name)) if isinstance(folder, str) else name)
        turns = (Turn("user", instructions[number % len(instructions)], media), Turn("assistant", caption))
        return Sample(turns, f"{source}/{name}/{number}", source, rest(row, "sentences"))

    yield from convert(sentences(), build)
