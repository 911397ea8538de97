"""Items as files that `data.sources` reads: Macaw-LLM's JSON, LLaVA's JSON and chat messages."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from macaw_lit.errors import unwritable
from macaw_lit.files import write_whole
from macaw_lit.generation.assemble import Item
from macaw_lit.generation.filters import known


def macaw(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """Rows of `id`, `instruction` and `response`; the pairs of a dialogue follow each other."""
    for item in items:
        for turn, pair in enumerate(item.pairs):
            row = {"id": item.record.id, "instruction": pair.instruction, "response": pair.response, "type": pair.type}
            yield {**row, "uid": f"{item.uid}/{turn}", "provenance": item.provenance}


def llava(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """Rows of `conversations` with the medium's marker before the first question."""
    for item in items:
        kind, turns = item.record.kind, []
        for turn, pair in enumerate(item.pairs):
            turns.append({"from": "human", "value": pair.instruction if turn else f"<{kind}>\n{pair.instruction}"})
            turns.append({"from": "gpt", "value": pair.response})
        yield {"id": item.uid, kind: item.record.id, "conversations": turns, "provenance": item.provenance}


def messages(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """Rows of `messages`, the medium a part of the first."""
    for item in items:
        kind, turns = item.record.kind, []
        for turn, pair in enumerate(item.pairs):
            medium = [] if turn else [{"type": kind, kind: item.record.id}]
            turns.append({"role": "user", "content": [*medium, {"type": "text", "text": pair.instruction}]})
            turns.append({"role": "assistant", "content": pair.response})
        yield {"id": item.uid, "messages": turns, "provenance": item.provenance}


WRITERS: dict[str, tuple[str, Callable[[Iterable[Item]], Iterator[dict[str, Any]]]]] = {
    "macaw": ("macaw.json", macaw),
    "llava": ("llava.json", llava),
    "messages": ("messages.jsonl", messages),
}
"""Format → file name and rows."""


def write_items(items: Sequence[Item], folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write the items in each format; equal items give equal bytes, and a crash leaves the file of before.

    Raises:
        ConfigError: an unknown format.
    """
    written = []
    for name in known("formats", formats, WRITERS):
        file, rows = WRITERS[name]
        lines = (json.dumps(row, ensure_ascii=False) for row in rows(items))
        if name == "messages":
            write_text(folder / file, "".join(f"{line}\n" for line in lines))
        else:
            head, tail = ('{"data": [\n', "\n]}\n") if name == "macaw" else ("[\n", "\n]\n")
            write_text(folder / file, head + ",\n".join(lines) + tail)
        written.append(folder / file)
    return written


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text whole or not at all.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise unwritable(path, error) from error
