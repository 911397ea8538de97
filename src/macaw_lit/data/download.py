"""Gets public data sets: `python -m macaw_lit.data.download dataset=alpaca|coco|charades|avsd|macaw root=<folder>`."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from macaw_lit.cli import command
from macaw_lit.data import fetch as net
from macaw_lit.data.unpack import is_unpacked, unpack
from macaw_lit.errors import ConfigError, DataError, unwritable


@command("download", paths=("root",))
def main(cfg: DictConfig) -> None:
    """Bring what `cfg.dataset` lacks under `cfg.root`, and say of every file what was done, or what is left to do."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    about, files = _chosen(settings)
    patience, root = net.Patience(**settings["patience"]), Path(settings["root"])
    print(f"{settings['dataset']}: {about['licence']}")
    absent = []
    with _alone(root), _bar() as progress:
        for name, file in files.items():
            if file["url"] is None:
                there = (root / file["path"]).is_file()
                absent += [] if there else [name]
                words = "there" if there else f"to be fetched by hand from {file['page']}: {file['how']}"
            else:
                words = _bring(root, file, patience, progress)
            print(f"  {name}: {root / file['path']}: {words}", flush=True)
    if absent:
        files_are = "a file is" if len(absent) == 1 else f"{len(absent)} files are"
        raise DataError(
            f"{files_are} to be fetched by hand, see above: {', '.join(absent)}; then run the same command again"
        )


def _chosen(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The data set, and those of its files that are wanted.

    Raises:
        ConfigError: there is no such data set or file.
    """
    known, only = settings["datasets"], settings["only"]
    if settings["dataset"] not in known:
        raise ConfigError(f"dataset={settings['dataset']}: expected one of {', '.join(known)}")
    about = known[settings["dataset"]]
    files = about["files"]
    if only is not None:
        only = [only] if isinstance(only, str) else only
        for name in only:
            if name not in files:
                raise ConfigError(
                    f"only: {name!r} is no file of {settings['dataset']}, expected some of {', '.join(files)}"
                )
        files = {name: files[name] for name in only}
    return about, files


def _bring(root: Path, file: Mapping[str, Any], patience: net.Patience, progress: net.Progress) -> str:
    """Fetch a file and unpack it, as far as that is still to be done; returns what was done, in words."""
    archive = root / file["path"]
    if file.get("unpack") is None:
        return net.fetch(net.Remote(file["url"], archive, file["bytes"], file["digest"]), patience, progress)
    folder = root / file["unpack"]
    if not archive.exists() and is_unpacked(archive, folder):
        return f"unpacked in {folder}, left as it is"
    words = net.fetch(net.Remote(file["url"], archive, file["bytes"], file["digest"]), patience, progress)
    count = unpack(archive, folder, file.get("inside") or "", progress)
    return f"{words}; {count} files unpacked into {folder}; the archive may be deleted"


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Holds the root for this process alone.

    Raises:
        ConfigError: another one has it.
        DataError: it cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".download.lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"{root} is being filled by another process; wait for it or stop it") from error
    except OSError as error:
        raise unwritable(root, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _bar() -> Iterator[net.Progress]:
    """A bar on stderr for whatever is being done; nothing where stderr is no terminal."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("")
        shown = ""

        def show(what: str, done: int, total: int | None) -> None:
            nonlocal shown
            if what != shown:
                shown = what
                bar.reset(task, description=what, completed=done, total=total)  # speed and rest are this file's own
            bar.update(task, completed=done, total=total)

        yield show


if __name__ == "__main__":
    main()
