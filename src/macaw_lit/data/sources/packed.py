"""What `python -m macaw_lit.data.pack` wrote: rows from the index, media as slices of the tars."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.files import Lines, read_json, rows_of
from macaw_lit.data.sources.rows import RowError, convert
from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef, Rejection, Sample, Slice, Turn

FORMAT = "macaw-lit packed 1"
INDEX = "index.json"
ROLES = ("system", "user", "assistant")
_ANEW = "copy the folder again, or pack the data anew"


def sniff(content: Any) -> dict[str, Any] | None:
    """Nothing more is to be said of the index of packed data; None for other formats."""
    return {} if isinstance(content, Mapping) and content.get("format") == FORMAT else None


def read(path: Path | str) -> Iterator[Sample | Rejection]:
    """The rows of a folder of packed data, or of the `index.json` in it, in the order in which they were packed.

    The size of every tar and the checksum of every index are compared; the checksum of a medium when it is read.

    Raises:
        DataError: the folder is no packed data, is not complete, or has been changed.
    """
    folder = Path(path).parent if Path(path).name == INDEX else Path(path)
    index = read_index(folder)
    if index.get("complete") is not True:
        raise DataError(f"{folder}: packing was broken off, expected a complete index; run the same pack command again")
    tars = {shard["name"]: folder / shard["name"] for shard in index["shards"]}
    total = 0
    for shard in index["shards"]:
        rows = rows_of_shard(folder, shard)
        total += len(rows)
        yield from convert(rows, lambda _, row: sample_of(row, tars))
    if total != index.get("rows"):
        raise DataError(f"{folder / INDEX}: {index.get('rows')} rows, expected the {total} of its shards; {_ANEW}")


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder, which need not be complete.

    Raises:
        DataError: there is none, or it is not as it was written.
    """
    index = read_json(folder / INDEX)
    if sniff(index) is None:
        raise DataError(f"{folder / INDEX}: expected an index of {FORMAT!r}; give the folder of a packed source")
    shards = index.get("shards")
    if not isinstance(shards, list) or not all(map(_is_shard, shards)):
        raise DataError(f"{folder / INDEX}: expected the shards that were packed; {_ANEW}")
    return dict(index)


def _is_shard(shard: Any) -> bool:
    match shard:
        case {"name": str(name), "bytes": int(), "rows": int(), "rows_sha256": str()}:
            return name.endswith(".tar") and Path(name).name == name
    return False


def rows_of_shard(folder: Path, shard: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """`(locator, row)` of one shard.

    Raises:
        DataError: the tar is not there or of another size, or its index is not as it was written.
    """
    tar, lines = folder / shard["name"], folder / f"{shard['name']}.jsonl"
    try:
        size, data = tar.stat().st_size, lines.read_bytes()
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}), expected a shard; {_ANEW}") from error
    if size != shard["bytes"]:
        raise DataError(f"{tar}: {size} bytes, expected {shard['bytes']}; {_ANEW}")
    if (found := hashlib.sha256(data).hexdigest()) != shard["rows_sha256"]:
        raise DataError(f"{lines}: SHA-256 {found}, expected {shard['rows_sha256']}; {_ANEW}")
    return rows_of(lines, Lines(data.decode("utf-8", "replace")))


def sample_of(row: Any, tars: Mapping[str, Path]) -> Sample:
    """A row as it was before it was packed, but for where its media are: in `tars`, by their names.

    Raises:
        RowError: missing_key, or media_outside of these tars.
    """
    match row:
        case {"uid": str(uid), "source": str(source), "turns": list(turns), "meta": dict(meta)}:
            return Sample(tuple(_turn(turn, tars) for turn in turns), uid, source, meta)
    raise RowError("missing_key", "expected uid, source, turns and meta")


def _turn(turn: Any, tars: Mapping[str, Path]) -> Turn:
    match turn:
        case {
            "role": "system" | "user" | "assistant" as role,
            "text": str(text),
            "media": list(media),
            "spoken": bool(spoken),
        }:
            return Turn(role, text, tuple(_ref(medium, tars) for medium in media), spoken)
    raise RowError("missing_key", f"expected turns of role ({', '.join(ROLES)}), text, media and spoken")


def _ref(medium: Any, tars: Mapping[str, Path]) -> MediaRef:
    match medium:
        case {
            "kind": str(kind),
            "name": str(name),
            "shard": str(shard),
            "offset": int(offset),
            "size": int(size),
            "sha256": str(checksum),
        } if offset >= 0 and size >= 0:
            if Path(name).name != name:
                raise RowError("media_outside", f"{name[:80]!r} is no file name")
            if shard not in tars:
                raise RowError("media_outside", f"{shard[:80]!r} is no shard of the folder")
            return MediaRef(kind, Slice(tars[shard], offset, size, name, checksum))
    raise RowError("missing_key", "expected media of kind, name, shard, offset, size and sha256")
