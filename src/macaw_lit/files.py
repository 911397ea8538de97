"""Files that are there whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

PART = ".part"
"""What the name of a file that is being written ends with."""


def write_whole(path: Path, data: str | bytes | bytearray) -> None:
    """Write beside `path`, wait for the disk, and rename: whenever the machine fails, the old file is there or the new.

    Args:
        data: bytes, or text that is written as UTF-8, line ends as they are.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    part = path.with_name(f"{path.name}{PART}")
    try:
        with part.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
