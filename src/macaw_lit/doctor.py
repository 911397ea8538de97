"""Looks at every row and medium before training: `python -m macaw_lit.doctor data=macaw`."""

import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from macaw_lit.cli import command, run_folder
from macaw_lit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from macaw_lit.data.doctor.examine import Medium
    from macaw_lit.data.doctor.survey import Report


@command("doctor", paths=("tokenizer",))
def main(cfg: DictConfig) -> None:
    """Print a table, write report.json and .html; exit code 1 if more than `max_skip_rate` of the rows are lost."""
    _check(cfg)
    folder, workers = run_folder(), cfg.workers or os.cpu_count() or 1
    report = _examine(cfg, workers)
    _write(report, folder, workers, float(cfg.seconds))
    if report.lost > cfg.max_skip_rate * report.rows:
        raise DataError(
            f"{report.lost} of {report.rows} rows cannot be used, expected at most max_skip_rate={cfg.max_skip_rate}; "
            f"repair what {folder / 'report.html'} shows"
        )


def _check(cfg: DictConfig) -> None:
    if cfg.mode not in ("header", "full"):
        raise ConfigError(f"mode={cfg.mode}; expected header, which reads headers only, or full, which decodes")
    if cfg.workers is not None and not (isinstance(cfg.workers, int) and cfg.workers > 0):
        raise ConfigError(f"workers={cfg.workers}; expected a number of processes, or null for one per core")
    for key in ("seconds", "max_skip_rate"):
        if not isinstance(cfg[key], int | float) or cfg[key] < 0:
            raise ConfigError(f"{key}={cfg[key]}; expected a number of 0 or more")


def _examine(cfg: DictConfig, workers: int) -> "Report":
    # Heavy imports wait until the configuration is known to be sound.
    from macaw_lit.build import build_data
    from macaw_lit.data.doctor.examine import examine_all
    from macaw_lit.data.doctor.survey import survey
    from macaw_lit.data.doctor.texts import TextRuler

    ruler = TextRuler(cfg.max_length, cfg.tokenizer)
    sources = build_data(cfg).sources
    readers = {split: {name: source.read for name, source in group.items()} for split, group in sources.items()}
    journal = Path(cfg.journal)
    check = partial(
        examine_all, journal=journal, mode=cfg.mode, workers=workers, seconds=float(cfg.seconds), track=_progress
    )
    return survey(readers, ruler, check)


def _progress(done: Iterator["Medium"], total: int) -> Iterable["Medium"]:
    console = Console(stderr=True)
    return track(done, "media", total, console=console, transient=True, disable=not console.is_terminal)


def _write(report: "Report", folder: Path, workers: int, seconds: float) -> None:
    from macaw_lit.data.doctor.examine import Medium, small_picture
    from macaw_lit.data.doctor.page import in_words, page, shown, table
    from macaw_lit.data.doctor.pool import run

    (folder / "report.json").write_text(json.dumps(report.as_json(), indent=1), encoding="ascii")
    findings = shown(report)
    media = dict.fromkeys(Medium(finding.kind, finding.place) for finding in findings if finding.kind)
    thumbnails = {
        medium: found for medium, found in run(small_picture, media, workers, seconds) if isinstance(found, bytes)
    }
    (folder / "report.html").write_text(page(report, findings, thumbnails), encoding="utf-8")
    Console().print(table(report))
    print(in_words(report))
    print(folder)


if __name__ == "__main__":
    main()
