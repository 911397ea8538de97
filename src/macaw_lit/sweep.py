"""Sums up a sweep: `python -m macaw_lit.sweep path=logs/train/multiruns/<time>`."""

import csv
import json
import math
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from macaw_lit import record
from macaw_lit.cli import command
from macaw_lit.errors import ConfigError, DataError, unwritable

Row = dict[str, Any]
"""What is known of a job, by column."""

OTHERS = ("train/loss", "val/loss", "modality_use/passed", "steps", "seconds")
"""Figures that the table shows beside the metric, where jobs differ in them."""


@command("sweep", text=("path",))
def main(cfg: DictConfig) -> None:
    """Compare the jobs of a sweep: a table, `summary.json`, `summary.csv` and `summary.png` in its folder."""
    if cfg.direction not in ("minimize", "maximize", None):
        raise ConfigError(f"direction={cfg.direction}: expected minimize or maximize")
    folder = Path(cfg.path)
    varied, rows = summarise(folder)
    metric = cfg.metric or next((row["optimized_metric"] for row in rows if "optimized_metric" in row), "val/loss")
    measured = [row for row in rows if isinstance(row.get(metric), int | float) and math.isfinite(row[metric])]
    highest = (cfg.direction or _direction(folder)) == "maximize"
    best = (max if highest else min)(measured, key=lambda row: row[metric], default=None)
    try:
        _write(folder, rows)
        _print(varied, rows, metric, best)
        if best is None:
            names = ("job", "status", "error", "optimized_metric", *varied)
            known = dict.fromkeys(name for row in rows for name in row if not name.startswith("version/"))
            there = ", ".join(name for name in known if name not in names) or "none"
            raise ConfigError(f"metric={metric}: no job of {folder} measured it; figures that there are: {there}")
        from macaw_lit.evaluation.sweep_plot import plot_sweep  # heavy: matplotlib

        plot_sweep(measured, varied, metric, best, folder / "summary.png")
    except OSError as error:
        raise unwritable(folder, error) from error
    chosen = " ".join(f"{key}={best[key]}" for key in varied)
    print(f"best {metric}: {best[metric]:.4g} by job {best['job']}" + f" ({chosen})" * bool(chosen))
    print(folder.resolve())


def summarise(folder: Path) -> tuple[list[str], list[Row]]:
    """The overrides in which the jobs of a sweep differ, and a row for each job that has begun.

    Raises:
        DataError: no job has.
    """
    jobs = record.read_all(folder)
    if not jobs:
        raise DataError(f"{folder} holds no job; expected the folder of a sweep, with 0/metrics.json and so on")
    settings = {
        name: dict(word.split("=", 1) for word in job["overrides"] if "=" in word) for name, job in jobs.items()
    }
    keys = list(dict.fromkeys(key for chosen in settings.values() for key in chosen))
    varied = [key for key in keys if len({chosen.get(key) for chosen in settings.values()}) > 1]
    rows = []
    for name, job in jobs.items():
        row: Row = {"job": name, "status": job["status"], **{key: settings[name].get(key, "") for key in varied}}
        row |= job.get("metrics", {})
        row |= {key: job[key] for key in ("optimized_metric", "error") if key in job}
        rows.append(row | {f"version/{key}": value for key, value in job.get("version", {}).items()})
    return varied, rows


def _direction(folder: Path) -> str:
    """What a search was for, by the config that it left; of a grid, which is for nothing, `minimize`."""
    path = folder / "multirun.yaml"
    settings = OmegaConf.load(path) if path.is_file() else None
    return str(OmegaConf.select(settings, "hydra.sweeper.direction", default="minimize")) if settings else "minimize"


def _write(folder: Path, rows: list[Row]) -> None:
    (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _print(varied: list[str], rows: list[Row], metric: str, best: Row | None) -> None:
    """Print a row for each job, means over seeds where there are several, and why jobs failed."""
    differing = [name for name in OTHERS if len({row[name] for row in rows if name in row}) > 1]
    figures = [metric, *(name for name in differing if name != metric)]
    table = _table("job", *varied, *figures)
    styles = {"failed": "red", "unfinished": "dim"}
    for row in rows:
        cells = [_short(row.get(name, "")) for name in figures]
        if row["status"] != "done":
            cells[0] = row["status"]
        style = "bold green" if row is best else styles.get(row["status"])
        table.add_row(row["job"], *(_short(row[key]) for key in varied), *cells, style=style)
    console = Console(width=None if sys.stdout.isatty() else 1000)  # nothing is cut in a file or a pipe
    console.print(table)
    others = [key for key in varied if key != "seed"]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row["status"] == "done" and metric in row:
            groups.setdefault(tuple(row[key] for key in others), []).append(row[metric])
    if "seed" in varied and others and any(len(found) > 1 for found in groups.values()):
        over = _table(*others, f"mean {metric}", "standard deviation", "seeds")
        for values, found in groups.items():
            spread = _short(stdev(found)) if len(found) > 1 else ""
            over.add_row(*map(_short, values), _short(mean(found)), spread, str(len(found)))
        console.print(over)
    for row in rows:
        if "error" in row:
            console.print(f"job {row['job']} failed: {row['error']}", markup=False, highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _short(value: Any) -> str:
    """A figure, or a setting as it was typed, with four digits where it has more."""
    try:
        return f"{float(value):.4g}" if len(str(value)) > 6 else str(value)
    except ValueError:
        return str(value)


if __name__ == "__main__":
    main()
