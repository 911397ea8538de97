"""Sums up a sweep: `python -m macaw_lit.sweep path=logs/train/multiruns/<time>`."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from macaw_lit import record
from macaw_lit.cli import command
from macaw_lit.errors import ConfigError, DataError

Row = dict[str, Any]
"""What is known of a job, by column."""


@command("sweep", text=("path",))
def main(cfg: DictConfig) -> None:
    """Compare the jobs of a sweep: a table, `summary.json`, `summary.csv` and `summary.png` in its folder."""
    if cfg.direction not in ("minimize", "maximize"):
        raise ConfigError(f"direction={cfg.direction}: expected minimize or maximize")
    folder = Path(cfg.path)
    varied, rows = summarise(folder)
    metric = cfg.metric or next(row["optimized_metric"] for row in rows if "optimized_metric" in row)
    measured = [row for row in rows if isinstance(row.get(metric), int | float) and math.isfinite(row[metric])]
    if not measured:
        known = sorted({name for row in rows for name in row if isinstance(row[name], int | float)})
        raise ConfigError(f"metric={metric}: no job of {folder} measured it; there are {', '.join(known)}")
    best = (min if cfg.direction == "minimize" else max)(row[metric] for row in measured)
    _write(folder, rows)
    _print(varied, rows, metric, best)
    from macaw_lit.evaluation.sweep_plot import plot_sweep  # heavy: matplotlib

    plot_sweep(measured, varied, metric, folder / "summary.png")
    print(folder.resolve())


def summarise(folder: Path) -> tuple[list[str], list[Row]]:
    """The overrides in which the jobs of a sweep differ, and a row for each job that has ended.

    Raises:
        DataError: there is no job that is done.
    """
    jobs = record.read_all(folder)
    if not any(job["status"] == "done" for job in jobs.values()):
        wanted = "expected the folder of a sweep, with 0/metrics.json and so on"
        raise DataError(f"{folder} holds no job that is done ({len(jobs)} failed); {wanted}")
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


def _write(folder: Path, rows: list[Row]) -> None:
    (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _print(varied: list[str], rows: list[Row], metric: str, best: float) -> None:
    others = ("train/loss", "val/loss", "modality_use/passed", "steps", "seconds")
    figures = [metric, *(name for name in others if name != metric and any(name in row for row in rows))]
    table = Table("job", *varied, *figures)
    for row in rows:
        cells = [f"{row[name]:.5g}" if name in row else "" for name in figures]
        if row["status"] != "done":
            cells[0] = f"failed: {row.get('error', '')}"
        style = "bold green" if row.get(metric) == best else "red" if row["status"] != "done" else None
        table.add_row(row["job"], *(row[key] for key in varied), *cells, style=style)
    Console().print(table)
    print(f"best {metric}: job {next(row['job'] for row in rows if row.get(metric) == best)}")


if __name__ == "__main__":
    main()
