"""`metrics.csv`, which a run that is taken up again goes on with: no row is lost, none is there twice."""

import csv
import os
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from macaw_lit.files import write_whole

Row = dict[str, Any]


class MetricsFile(Logger):
    """Writes a row for each call of `log_metrics` at once, blank where it has no value. Only the first process writes.

    Lightning's CSVLogger deletes the file when a run is taken up again. This one replaces it with its first row, unless
    `go_on` has been called.

    Args:
        folder: where `metrics.csv` is written.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows = 0  # written so far
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        """Nothing: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        row |= {} if step is None else {"step": step}
        if new := row.keys() - set(self._columns):
            before = self._read(self.rows)
            self._columns = sorted([*self._columns, *new])
            self._replace([*before, row])
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        self.rows += 1

    @rank_zero_only
    def settle(self) -> None:
        """Wait until all rows are on the disk."""
        if self.rows:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def go_on(self, rows: int) -> None:
        """Keep the first `rows` rows of the file and write after them."""
        kept = self._read(rows) if self.path.is_file() else []
        if kept:
            self._columns, self.rows = list(kept[0]), len(kept)
            self._replace(kept)

    def _read(self, rows: int) -> list[Row]:
        if not rows:
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row, _ in zip(csv.DictReader(file), range(rows), strict=False)]

    def _replace(self, rows: list[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        table = StringIO()
        writer = csv.DictWriter(table, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, table.getvalue())
