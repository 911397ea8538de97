"""Archives into folders: only what is missing, nothing outside the folder, no links."""

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from macaw_lit.data.fetch import Progress, room_for
from macaw_lit.errors import DataError, in_one_line, unwritable


def unpack(archive: Path, folder: Path, inside: str, progress: Progress) -> int:
    """Unpack the members of a zip that are missing or of another size; returns how many these were.

    Every file gets its name when it is whole. `<archive>.contents` lists all, so that the archive may be deleted.

    Args:
        inside: the folder in the archive whose members are wanted, such as `Charades/`; empty for all.

    Raises:
        DataError: no zip, a damaged one, one with a member that would lie outside or is a link, or a full disk.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = dict(_members(archive, packed, inside))
            if not members:
                raise DataError(
                    f"{archive}: nothing in it under {inside or 'its top'!r}, expected files; fetch it again"
                )
            wanted = {name: info for name, info in members.items() if not _is_there(folder / name, info.file_size)}
            folder.mkdir(parents=True, exist_ok=True)
            room_for(folder, sum(info.file_size for info in wanted.values()))
            for number, (name, info) in enumerate(wanted.items(), 1):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.part")
                with packed.open(info) as source, partial.open("wb") as file:
                    shutil.copyfileobj(source, file, 2**20)
                partial.replace(target)
                progress(f"unpacking {archive.name}", number, len(wanted))
        listed = "".join(f"{info.file_size}\t{name}\n" for name, info in members.items())
        if not is_unpacked(archive, folder):
            _contents(archive).write_text(listed, encoding="utf-8", newline="")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        remedy = f"delete it, and {archive.name}.sha256 if that is there, and run again"
        raise DataError(f"{archive}: damaged or no zip ({in_one_line(error)}); {remedy}") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    return len(wanted)


def is_unpacked(archive: Path, folder: Path) -> bool:
    """All that the archive held is in the folder, each file with its size; the archive may be gone."""
    try:
        lines = [line.partition("\t") for line in _contents(archive).read_text(encoding="utf-8").splitlines()]
        return all(_is_there(folder / name, int(size)) for size, _, name in lines)
    except (OSError, ValueError):
        return False


def _contents(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.contents")


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _members(archive: Path, packed: zipfile.ZipFile, inside: str) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Name under the folder and entry of every file that is wanted.

    Raises:
        DataError: a member that no honest archive has.
    """
    for info in packed.infolist():
        path = PurePosixPath(info.filename)
        odd = path.is_absolute() or ".." in path.parts or any(char in info.filename for char in "\\:\t\r\n")
        if odd or stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(
                f"{archive}: member {info.filename[:80]!r} is a link or leads outside; do not use this archive"
            )
        if not info.is_dir() and info.filename.startswith(inside):
            yield info.filename.removeprefix(inside), info
