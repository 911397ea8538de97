"""Packs data into tars: `python -m macaw_lit.data.pack data=macaw out=/my/packed [shard_mb=256]`."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from macaw_lit.cli import command
from macaw_lit.errors import ConfigError, DataError, unwritable
from macaw_lit.types import Rejection, Sample

if TYPE_CHECKING:
    from macaw_lit.data.datamodule import Source
    from macaw_lit.data.doctor.examine import Medium, Verdict

T = TypeVar("T")
Examine = Callable[["Iterable[Medium]"], "dict[Medium, Verdict]"]


@command("pack", paths=("out",))
def main(cfg: DictConfig) -> None:
    """Pack every source of `cfg.data` into a folder of its own; print what became of the rows, and lines for a config.

    Rows that the reader rejects, or whose media cannot be used, are left out and counted.
    """
    _check(cfg)
    # Heavy imports wait until the configuration is known to be sound.
    from macaw_lit.build import build_data
    from macaw_lit.data.doctor.examine import examine_all

    def examine(media: "Iterable[Medium]") -> "dict[Medium, Verdict]":
        workers = cfg.workers or os.cpu_count() or 1
        return examine_all(media, Path(cfg.journal), cfg.mode, workers, float(cfg.seconds), _bar("media"))

    out = Path(cfg.out).resolve()
    packed = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / "pack.lock", timeout=0):
            for split, sources in build_data(cfg).sources.items():
                for name, source in sources.items():
                    folder = out / split / _folder_name(name)
                    packed[split, name] = pack(source, folder, cfg.shard_mb * 2**20, examine, f"{split}/{name}")
    except Timeout as error:
        raise ConfigError(f"out={out}: another process packs there; wait for it, or give another folder") from error
    except OSError as error:
        raise unwritable(out, error) from error
    Console().print(_table(packed))
    print(_yaml(packed, out, cfg), end="")


def pack(source: "Source", folder: Path, shard_bytes: int, examine: Examine, name: str) -> dict[str, Any]:
    """Pack the usable rows of a source, in their order, and return the index: seen = rows + rejected, by cause.

    Raises:
        DataError: the source cannot be read or has no usable row, or `folder` cannot be used.
    """
    from macaw_lit.data.doctor.examine import Medium
    from macaw_lit.data.shards import write_shards

    samples, rejected = [], Counter[str]()
    for row in source.read():
        if isinstance(row, Rejection):
            rejected[row.cause] += 1
        else:
            samples.append(row)
    seen = len(samples) + rejected.total()
    verdicts = examine(Medium.of(ref) for sample in samples for turn in sample.turns for ref in turn.media)
    kept: list[Sample] = []
    for sample in samples:
        causes = (verdicts[Medium.of(ref)].cause for turn in sample.turns for ref in turn.media)
        if cause := next(filter(None, causes), None):
            rejected[cause] += 1
        else:
            kept.append(sample)
    if not kept:
        raise DataError(f"{name} has no usable row ({dict(rejected) or 'it is empty'}); check its files or remove it")
    account = {"seen": seen, "rejected": dict(sorted(rejected.items()))}
    return write_shards(kept, folder, shard_bytes, account, _bar(name))


def _check(cfg: DictConfig) -> None:
    if cfg.mode not in ("header", "full"):
        raise ConfigError(f"mode={cfg.mode}; expected header, which reads headers only, or full, which decodes")
    for key in ("shard_mb", "workers"):
        value = cfg[key]
        if not (isinstance(value, int) and value > 0) and not (key == "workers" and value is None):
            raise ConfigError(f"{key}={value}; expected a whole number of at least 1")
    if not isinstance(cfg.seconds, int | float) or cfg.seconds <= 0:
        raise ConfigError(f"seconds={cfg.seconds}; expected a number above 0")


def _folder_name(name: str) -> str:
    if Path(name).name != name or name == "..":
        raise ConfigError(f"source {name!r}: expected a name that a folder can have; rename it in the data config")
    return name


def _bar(what: str) -> Callable[[Iterable[T], int], Iterable[T]]:
    return lambda items, total: track(items, what, total, console=Console(stderr=True), transient=True)


def _table(packed: dict[tuple[str, str], dict[str, Any]]) -> Table:
    result = Table("split", "source", "rows seen", "packed", "rejected", "tars", "MiB", box=SIMPLE_HEAD)
    for (split, name), index in packed.items():
        causes = "\n".join(f"{count} {cause}" for cause, count in index["rejected"].items())
        size = sum(shard["bytes"] for shard in index["shards"]) / 2**20
        shown = (index["seen"], index["rows"], causes, len(index["shards"]), f"{size:.1f}")
        result.add_row(split, name, *map(str, shown))
    return result


def _yaml(packed: dict[tuple[str, str], dict[str, Any]], out: Path, cfg: DictConfig) -> str:
    """The sources of a data config that reads what was packed, with the counts and weights of the present one."""
    sources: dict[str, dict[str, Any]] = {}
    for split, name in packed:
        read = {"_target_": "macaw_lit.data.sources.packed.read", "_partial_": True, "path": str(out / split / name)}
        shares = {key: cfg.data[split][name].get(key) for key in ("count", "weight")}
        target = "macaw_lit.data.datamodule.Source"
        sources.setdefault(split, {})[name] = {"_target_": target, **shares, "read": read}
    return OmegaConf.to_yaml(sources)


if __name__ == "__main__":
    main()
