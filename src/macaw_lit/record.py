"""What a run says of itself: that it is under way, and, in `metrics.json`, how it went, by which settings and code."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from macaw_lit import __version__
from macaw_lit.errors import NO_ROOM, ConfigError, MacawError, system_error
from macaw_lit.files import write_whole

FILE = "metrics.json"


class JobError(MacawError):
    """A job of a sweep that failed, in `folder`; its message names it and says why."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message, folder)  # both travel between processes
        self.message, self.folder = message, folder

    def __str__(self) -> str:
        others = sum(record["status"] == "failed" for record in read_all(self.folder.parent).values()) - 1
        more = f" ({others} more failed)" if others > 0 else ""
        again = f"the same command with hydra.sweep.dir={self.folder.parent} runs it again, and no job that is done"
        return f"{self.message}{more}; {again}"


@contextmanager
def one_run(folder: Path, waiting: str | None = None) -> Iterator[None]:
    """Keep other runs out of `folder` until the block ends or the process does, in whatever way.

    By a POSIX lock, which children do not inherit: data workers outlive a killed run by seconds. Where a file system
    has no locks, nobody is kept out.

    Args:
        waiting: what to print while another run is waited for; None refuses instead.

    Raises:
        ConfigError: another run is under way there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                if waiting is None:
                    remedy = "wait for its end, or choose another paths.run_dir"
                    raise ConfigError(f"{folder}: another run is under way in this folder; {remedy}") from error
                print(waiting, flush=True)
                fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """Say in one line that a disk takes no more, wherever a file is written by the run in `folder`.

    Raises:
        ConfigError: it does not.
    """
    try:
        yield
    except Exception as error:
        number = system_error(error)
        if number is None or number not in NO_ROOM:
            raise
        place = Path(str(getattr(error, "filename", None) or folder)).absolute()
        disk = next(each for each in (place, *place.parents) if each.is_dir())
        free = f"{shutil.disk_usage(disk).free:,} bytes are free: make room"
        remedy = "let it be written to" if number == errno.EROFS else free
        raise ConfigError(
            f"{place} cannot be written ({os.strerror(number)}), {remedy} and go on with ckpt_path=auto "
            f"paths.run_dir={folder}"
        ) from error


def write(folder: Path, status: str, overrides: Sequence[str], **content: Any) -> None:
    """Replace the record in `folder`, whole or not at all.

    Args:
        status: `done` or `failed`.
        overrides: the command line of the run, or of the job in a sweep.
    """
    record = {"status": status, "overrides": list(overrides), **content, "version": version()}
    write_whole(folder / FILE, json.dumps(record, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any] | None:
    """The record in `folder`; None if the run has not ended, or its record cannot be read."""
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"status", "overrides"} <= record.keys() else None


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of the runs within `folder` by the names of theirs, numbered ones in order.

    One that runs or was stopped has the status `unfinished`, and the overrides that Hydra wrote down.
    """
    found = {path.parent.name: read(path.parent) for path in folder.glob(f"*/{FILE}")}
    for path in folder.glob("*/.hydra/overrides.yaml"):
        name = path.parent.parent.name
        if found.get(name) is None and isinstance(words := yaml.safe_load(path.read_text(encoding="utf-8")), list):
            found[name] = {"status": "unfinished", "overrides": words}
    order = sorted(found, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    return {name: record for name in order if (record := found[name]) is not None}


def done(folder: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The record of a job that is done already, by the same overrides; None if it is to be run.

    Raises:
        ConfigError: another job left its record there.
    """
    record = read(folder)
    if record is None or record["status"] != "done":
        return None
    if sorted(record["overrides"]) != sorted(overrides):
        before, given = set(record["overrides"]), set(overrides)
        was, now = (" ".join(sorted(each)) or "without" for each in (before - given, given - before))
        raise ConfigError(f"{folder} holds a job of another sweep ({was}), not {now}: choose another hydra.sweep.dir")
    return record


def version() -> dict[str, Any]:
    """Of the package; in a working copy the commit too, and whether files differ from it."""
    root = Path(__file__).resolve().parents[2]
    stamp: dict[str, Any] = {"macaw_lit": __version__}
    if (root / ".git").exists():
        try:
            stamp["commit"] = _git(root, "rev-parse", "HEAD")
            stamp["modified"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.SubprocessError):
            stamp["commit"] = None
    return stamp


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    return answer.stdout.strip()
