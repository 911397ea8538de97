"""Says what a data file is: `python -m macaw_lit.data.describe path=<file> media_root=<folder> [format=json]`."""

import importlib
import inspect
import json
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from macaw_lit.cli import command
from macaw_lit.data import sources
from macaw_lit.data.sources.files import csv_rows, read_json
from macaw_lit.data.sources.roots import Roots
from macaw_lit.data.sources.rows import sample_row, stop_at_first
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.types import Rejection, Sample


@dataclass
class Description:
    """What a file is and what became of its rows.

    Attributes:
        reader: the function that reads it, with the arguments it was given: what stands under `read:` in a config.
        usable: rows that became samples.
        turns: questions with an answer in them.
        media: kind → how many media the samples have.
        rejected: cause → rows.
        first: cause → place and detail of the first such row.
    """

    format: str
    reader: dict[str, Any]
    usable: int = 0
    turns: int = 0
    media: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All that were read."""
        return self.usable + self.rejected.total()

    def as_json(self) -> dict[str, Any]:
        """For machines: the attributes, and `rows`."""
        return {**vars(self), "rows": self.rows, "media": dict(self.media), "rejected": dict(self.rejected)}


def describe(path: Path | str, media_root: Roots | None = None, strict: bool = False) -> Description:
    """Sniffs the format of a file and reads all of it; media are looked for, and not decoded.

    Args:
        media_root: where the media lie; the folder of the file unless given.
        strict: stop at the first row that cannot be used.

    Raises:
        DataError: the file cannot be read, is of no known format, or, if `strict`, has a row that cannot be used.
    """
    name, read, arguments = sniff(path)
    if "media_root" in inspect.signature(read).parameters:
        arguments["media_root"] = Path(path).parent if media_root is None else media_root
    found = Description(name, {"_target_": f"{read.__module__}.read", "path": str(path), **_plain(arguments)})
    rows: Iterator[Sample | Rejection] = read(path, **arguments)
    for row in stop_at_first(rows) if strict else rows:
        if isinstance(row, Rejection):
            found.rejected[row.cause] += 1
            found.first.setdefault(row.cause, f"{row.locator}: {row.detail}")
        else:
            found.usable += 1
            found.turns += sum(turn.role == "assistant" for turn in row.turns)
            found.media.update(ref.kind for turn in row.turns for ref in turn.media)
    return found


def sniff(path: Path | str) -> tuple[str, Callable[..., Iterator[Sample | Rejection]], dict[str, Any]]:
    """The name of a file's format, its reader, and what the reader needs to be told beside the path and the media.

    Raises:
        DataError: the file cannot be read or is of no known format.
    """
    readers = dict(_readers())
    is_csv = ".csv" in Path(path).suffixes
    content = [row for _, row in csv_rows(path, ())] if is_csv else read_json(path)
    for name, module in readers.items():
        arguments = module.sniff(content)
        if arguments is not None:
            return name, module.read, dict(arguments)
    keys = content if isinstance(content, Mapping) else sample_row(content)
    found = f"keys {', '.join(map(repr, keys))[:120]}" if keys else f"a {type(content).__name__} without rows"
    raise DataError(f"{path}: {found}, expected one of the formats {', '.join(readers)}; name its reader in a config")


def _readers() -> Iterator[tuple[str, ModuleType]]:
    """Every module of `sources` that can sniff, by name."""
    for info in pkgutil.iter_modules(sources.__path__):
        module = importlib.import_module(f"{sources.__name__}.{info.name}")
        if hasattr(module, "sniff"):
            yield info.name, module


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON and YAML can hold them."""
    paths = {key: [str(each) for each in value] for key, value in arguments.items() if isinstance(value, list)}
    return {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()} | paths


def table(found: Description) -> Table:
    """The description for a console."""
    result = Table("rows", "", "first", box=SIMPLE_HEAD)
    media = ", ".join(f"{count} {kind}" for kind, count in found.media.items()) or "none"
    result.add_row(str(found.usable), "usable", f"{found.turns} answers; media: {media}")
    for cause, count in found.rejected.most_common():
        result.add_row(str(count), cause, Text(found.first[cause]), style="red")
    return result


@command("describe", paths=("path", "media_root"))
def main(cfg: DictConfig) -> None:
    """Print the description of `cfg.path` as a table or as JSON."""
    if cfg.format not in ("table", "json"):
        raise ConfigError(f"format={cfg.format}; expected table or json")
    root = [str(each) for each in cfg.media_root] if isinstance(cfg.media_root, ListConfig) else cfg.media_root
    found = describe(cfg.path, root, cfg.strict)
    if cfg.format == "json":
        print(json.dumps(found.as_json()))
    else:
        print(f"{cfg.path}: {found.format}, {found.rows} rows, read by {found.reader['_target_']}")
        Console().print(table(found))


if __name__ == "__main__":
    main()
