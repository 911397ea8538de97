"""What the formats of dialogues share: roles by any name, parts, media in columns of the row, markers in the text."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.embedded import embedded_refs, sound_refs
from macaw_lit.data.sources.files import json_rows
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import RowError, clean, convert, field, heard, instruction_of, response_of, rest
from macaw_lit.types import Bytes, MediaRef, Rejection, Role, Sample, Turn

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
KINDS = ("image", "video", "audio")
MARKER = re.compile(r"<(image|video|audio)>")
"""Stands in the text for the next medium of its kind; in a row without such media it is text like any other."""

LOST = re.compile(r"\A\s*<(image|video|audio)>\s*?(?:\n|\Z)|\n[ \t]*<(image|video|audio)>\s*\Z")
"""A marker alone on the first or last line: a person who writes of HTML does not write so."""


class _Columns:
    """The media that a row names beside its messages; `take` hands them out in order, a video with its sound.

    Media stand under `image`, `images` and so on: a name, an object that holds one, or a list of either. Where the row
    names sounds, its videos bring none.
    """

    def __init__(self, row: Mapping[str, Any], roots: MediaRoots) -> None:
        heard = any(row.get(key) for key in ("audio", "audios"))
        self.waiting: dict[str, deque[tuple[MediaRef, ...]]] = {}
        for kind in KINDS:
            columns = [row.get(key) for key in (kind, f"{kind}s")]
            given = [each for column in columns for each in (column if isinstance(column, list) else [column])]
            refs = [_refs(roots, kind, each) for each in given if each not in (None, "")]
            if refs:
                self.waiting[kind] = deque(each[:1] if heard else each for each in refs)

    def take(self, kind: str) -> tuple[MediaRef, ...]:
        if not self.waiting.get(kind):
            raise RowError("media_count", f"more places for {kind} than the row names")
        return self.waiting[kind].popleft()

    def rest(self) -> tuple[MediaRef, ...]:
        """Those that nothing asked for."""
        return tuple(ref for queue in self.waiting.values() for refs in queue for ref in refs)


def read_dialogues(path: Path | str, media_root: Roots, source: str, key: str) -> Iterator[Sample | Rejection]:
    """One sample per row in file order, all its turns kept, from the messages under `key`.

    Raises:
        DataError: the file cannot be read, is not JSON or no list of rows; `media_root` is no folder.
    """
    roots = MediaRoots(media_root)
    item = Path(path).name.partition(".")[0]

    def build(number: int, row: Any) -> Sample:
        messages = row.get(key) if isinstance(row, Mapping) else None
        if messages is None:
            field(row, key)  # says which: not an object, or no such key
        if not isinstance(messages, list) or not messages:
            raise RowError("missing_key", f"{key!r} is no list of messages")
        media = _Columns(row, roots)
        turns = [_turn(message, media, roots) for message in messages]
        if row.get("system") is not None:
            turns.insert(0, Turn("system", instruction_of(row, "system")))
        turns, left_out = _in_order(turns)
        first = next(place for place, turn in enumerate(turns) if turn.role == "user")
        turns[first] = replace(turns[first], media=(*media.rest(), *turns[first].media))
        held = any(isinstance(ref.path, Bytes) for turn in turns for ref in turn.media)
        columns = [name for kind in KINDS for name in (kind, f"{kind}s")] if held else []  # megabytes of base64
        meta = rest(row, key, "system", *columns) | ({"turns_left_out": left_out} if left_out else {})
        name = row.get("id") if isinstance(row.get("id"), int | str) else item
        return Sample(tuple(turns), f"{source}/{name}/{number}", source, meta)

    yield from convert(json_rows(path), build)


def _refs(roots: MediaRoots, kind: str, given: Any) -> tuple[MediaRef, ...]:
    """A medium by its name, or by an object with `path` or `url`."""
    name = field(given, "path", "url") if isinstance(given, Mapping) else field({kind: given}, kind)
    return embedded_refs(kind, name) if _embedded(name) else roots.refs(kind, name)


def _embedded(name: str) -> bool:
    return name[:5].lower() == "data:"


def _turn(message: Any, media: _Columns, roots: MediaRoots) -> Turn:
    """A message of either dialect; what its markers and empty parts ask for is taken from `media`."""
    name = field(message, "role", "from").lower()
    if name not in ROLES:
        raise RowError("unknown_role", f"role {name[:40]!r}, expected one of {', '.join(ROLES)}")
    role = ROLES[name]
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        text, refs = _parts(content, media, roots)
        kinds = {str(part["type"]).removesuffix("_url") for part in content}
        if role == "user" and "audio" in kinds and "text" not in kinds:
            heard(refs)
            return Turn(role, "", refs, spoken=True)
        message = {"content": text}
    else:
        text, refs = field(message, "content", "value"), ()
        if role == "user":
            text, refs = _markers(text, media)
            message = {"content": text}
    get: Callable[..., str] = response_of if role == "assistant" else instruction_of
    return Turn(role, get(message, "content", "value"), refs)


def _markers(text: str, media: _Columns) -> tuple[str, tuple[MediaRef, ...]]:
    """The text without the markers of media that the row has, and these media."""
    lost = LOST.search(text)
    if lost and (lost[1] or lost[2]) not in media.waiting:
        raise RowError("media_count", f"{lost[0].strip()} stands in the text and the row names no such medium")
    taken: list[MediaRef] = []

    def take(found: re.Match[str]) -> str:
        if found[1] not in media.waiting:
            return found[0]
        taken.extend(media.take(found[1]))
        return ""

    return clean(MARKER.sub(take, text)), tuple(taken)


def _parts(parts: list[Any], media: _Columns, roots: MediaRoots) -> tuple[str, tuple[MediaRef, ...]]:
    """The text and the media of a content list as OpenAI's, Qwen's and TRL's users write it."""
    texts: list[str] = []
    refs: list[MediaRef] = []
    for part in parts:
        name = field(part, "type")
        kind = "audio" if name == "input_audio" else name.removesuffix("_url")
        if name == "text":
            texts.append(field(part, "text"))
        elif kind not in KINDS:
            raise RowError("unknown_part", f"a part of type {name[:40]!r}, expected text, {', '.join(KINDS)}")
        elif name == "input_audio":
            data, form = field(part.get(name), "data"), str(part[name].get("format", ""))
            refs += embedded_refs(kind, data) if _embedded(data) else sound_refs(data, form)
        else:
            given = next((part[key] for key in (name, kind, "path", "url") if part.get(key) is not None), None)
            refs += media.take(kind) if given is None else _refs(roots, kind, given)
    return "\n".join(filter(None, texts)), tuple(refs)


def _in_order(turns: list[Turn]) -> tuple[list[Turn], int]:
    """The turns without a last question that nobody answers, and how many were left out (0 or 1).

    Raises:
        RowError: turn_order: they are not [system] (user assistant)+.
    """
    head = int(turns[0].role == "system")
    left_out = int(len(turns) > head + 1 and turns[-1].role == "user")
    kept = turns[: len(turns) - left_out]
    roles = [turn.role for turn in kept[head:]]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        found = " ".join(turn.role for turn in turns[:8])
        raise RowError("turn_order", f"turns are {found}, expected [system] (user assistant)+")
    return kept, left_out
