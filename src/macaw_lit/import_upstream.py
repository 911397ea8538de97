"""Imports original Macaw-LLM weights: `python -m macaw_lit.import_upstream source=<folder> target=<folder>`."""

import sys
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

from omegaconf import DictConfig

from macaw_lit.cli import command
from macaw_lit.errors import ConfigError


@command("import_upstream", text=("source", "target"), paths=("tokenizer",))
def main(cfg: DictConfig) -> None:
    """Write the checkpoint `cfg.source` as the model folder `cfg.target`."""
    if not isinstance(cfg.heads, int | None) or isinstance(cfg.heads, bool):
        raise ConfigError(f"heads={cfg.heads}: expected a positive whole number, or null")
    from macaw_lit.upstream.convert import convert  # heavy imports wait until the configuration is known to be sound

    tokenizer = None if cfg.tokenizer is None else Path(cfg.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(Path(cfg.source), Path(cfg.target), cfg.variant, cfg.heads, tokenizer, cfg.dtype, print, _track)


def _track(files: Collection[Path]) -> Iterable[Path]:
    """The files in turn, with a bar on stderr that tells how many are done."""
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    return track(files, f"reading {len(files)} files", console=console, disable=not console.is_terminal)


if __name__ == "__main__":
    main()
