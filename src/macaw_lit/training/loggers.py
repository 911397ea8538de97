"""Loggers of others, made to go on with a run that is taken up again and to end with the run."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from macaw_lit.files import write_whole


class Wandb(WandbLogger):
    """A run of Weights & Biases, with its id in `wandb/run_id` of the run folder, so that a resumed run goes on in it.

    It ends when training ends. Lightning leaves it open, and the next job of a sweep would write into it.

    Args:
        save_dir: the run folder.
        id: of the run to go on with; None: the folder's own.
        settings: of Lightning's `WandbLogger` and `wandb.init`.
    """

    def __init__(self, save_dir: str, id: str | None = None, **settings: Any) -> None:  # noqa: A002
        note = Path(save_dir) / "wandb" / "run_id"
        super().__init__(save_dir=save_dir, id=id or _read(note) or secrets.token_hex(4), **settings)
        self._wandb_init.pop("anonymous")  # which it warns of, whatever the value
        self._keep_id(note)

    @rank_zero_only
    def _keep_id(self, note: Path) -> None:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, f"{self._id}\n")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status == "failed"))
            self._experiment = None


class MLflow(MLFlowLogger):
    """A run of MLflow whose id stays in `mlflow_run_id` in the run folder, so that a resumed run goes on in it.

    Args:
        folder: the run folder.
        tracking_uri: a database such as `sqlite:////my/mlflow.db`, whose folder is made, or a server's address.
        run_id: of the run to go on with; None: the folder's own.
        settings: of Lightning's `MLFlowLogger`.
    """

    def __init__(self, folder: str, tracking_uri: str, run_id: str | None = None, **settings: Any) -> None:
        self._note = Path(folder) / "mlflow_run_id"
        self._known = run_id or _read(self._note)
        if tracking_uri.startswith("sqlite:///"):
            Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        super().__init__(tracking_uri=tracking_uri, run_id=self._known, **settings)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log them once: MLflow refuses another value, such as that of `ckpt_path` when a run is taken up again."""
        if self._known is None:
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if self._known is None:
            self._known = str(self.run_id)
            write_whole(self._note, f"{self._known}\n")


def _read(note: Path) -> str | None:
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None
