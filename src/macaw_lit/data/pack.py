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

    Rows that the reader rejects, or whose media cannot be used, are left out and counted; of a source that loses more
    than `cfg.data.max_skip_rate` of them nothing is packed.
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
            data = build_data(cfg)
            for split, sources in data.sources.items():
                for name, source in sources.items():
                    folder, label = out / split / _folder_name(name), f"{split}/{name}"
                    packed[split, name] = pack(source, folder, cfg.shard_mb * 2**20, examine, label, data.max_skip_rate)
    except Timeout as error:
        raise ConfigError(f"out={out}: another process packs there; wait for it, or give another folder") from error
    except OSError as error:
        raise unwritable(out, error) from error
    Console().print(_table(packed))
    print(_yaml(packed, out, cfg), end="")


def pack(
    source: "Source", folder: Path, shard_bytes: int, examine: Examine, name: str, max_skip_rate: int | float = 0.01
) -> dict[str, Any]:
    """Pack the usable rows of a source, in their order, and return the index: seen = rows + rejected, by cause.

    Raises:
        DataError: the source cannot be read, has no usable row or too many that are not, or `folder` cannot be used.
    """
    from macaw_lit.data.accounts import in_short, too_many
    from macaw_lit.data.doctor.examine import Medium
    from macaw_lit.data.shards import write_shards

    samples: list[Sample] = []
    lost: list[Rejection] = []
    for row in source.read():
        if isinstance(row, Rejection):
            lost.append(row)
        else:
            samples.append(row)
    seen = len(samples) + len(lost)
    verdicts = examine(Medium.of(ref) for sample in samples for turn in sample.turns for ref in turn.media)
    kept: list[Sample] = []
    for sample in samples:
        found = (verdicts[Medium.of(ref)] for turn in sample.turns for ref in turn.media)
        if bad := next((verdict for verdict in found if verdict.cause), None):
            lost.append(Rejection(bad.cause or "", sample.uid, bad.detail))
        else:
            kept.append(sample)
    rejected = Counter(row.cause for row in lost)
    if lost and kept and len(lost) > max_skip_rate * seen:
        raise DataError(too_many(name, "left out", rejected, seen, in_short(lost[0]), max_skip_rate))
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
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return lambda items, total: track(items, what, total, console=console, transient=True, disable=hidden)


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
