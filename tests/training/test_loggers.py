"""Loggers of others, with stand-ins for what is not installed: one run per run folder, however often it is taken up."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import mlflow as lightning_mlflow
from lightning.pytorch.loggers import wandb as lightning_wandb

from macaw_lit.training.loggers import MLflow, Wandb


class Run:
    """Of Weights & Biases: what it was begun with, what it was told, and how it ended."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.rows, self.ended = settings, [], None
        self.config = SimpleNamespace(update=lambda *_, **__: None)

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code
        sys.modules["wandb"].run = None


@pytest.fixture
def wandb(monkeypatch) -> list[Run]:
    runs: list[Run] = []

    def init(**settings: Any) -> Run:
        runs.append(Run(**settings))
        module.run = runs[-1]
        return runs[-1]

    module: Any = ModuleType("wandb")
    module.init, module.run = init, None
    module.wandb_run = module.sdk = module
    module.Run, module.RunDisabled, module.lib = Run, Run, module
    for name in ("wandb", "wandb.wandb_run", "wandb.sdk", "wandb.sdk.lib"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", True)
    return runs


def test_a_run_of_wandb_goes_on_in_its_folder_and_ends_with_training(wandb, tmp_path):
    for folder, status in (("a", "failed"), ("a", "success"), ("b", "success")):
        logger = Wandb(save_dir=str(tmp_path / folder), offline=True, project="macaw-lit")
        logger.log_metrics({"train/loss": 1.0}, 3)
        logger.finalize(status)
    assert [run.ended for run in wandb] == [1, 0, 0]
    ids = [run.settings["id"] for run in wandb]
    assert ids[0] == ids[1] != ids[2]
    assert all(run.settings["resume"] == "allow" and "anonymous" not in run.settings for run in wandb)
    assert [run.rows for run in wandb] == [[{"train/loss": 1.0, "trainer/global_step": 3}]] * 3
    assert Wandb(save_dir=str(tmp_path / "a"), id="mine")._id == "mine"


class Client:
    """Of MLflow, for one test: the parameters and figures of each run."""

    runs: dict[str, list[tuple[str, Any]]]

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(lifecycle_stage="active", experiment_id="0")

    def create_run(self, experiment_id: str, tags: Any) -> Any:
        self.runs[name := f"run{len(self.runs)}"] = []
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def get_run(self, name: str) -> Any:
        assert name in self.runs
        return SimpleNamespace(info=SimpleNamespace(experiment_id="0"))

    def log_batch(self, run_id: str, params: Any = (), metrics: Any = ()) -> None:
        self.runs[run_id] += [(each.key, each.value) for each in (*params, *metrics)]


def test_a_run_of_mlflow_goes_on_in_its_folder_and_keeps_its_parameters(monkeypatch, tmp_path):
    module: Any = ModuleType("mlflow")
    module.MlflowClient, module.set_tracking_uri = Client, lambda uri: None
    module.Param = module.Metric = SimpleNamespace
    for name in ("mlflow", "mlflow.tracking", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(lightning_mlflow, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(lightning_mlflow, "_get_resolve_tags", lambda: lambda tags: tags)
    monkeypatch.setattr(Client, "runs", {}, raising=False)
    for folder, loss, path in (("a", 2.0, None), ("a", 1.0, "auto"), ("b", 3.0, None)):
        (tmp_path / folder).mkdir(exist_ok=True)
        logger = MLflow(folder=str(tmp_path / folder), tracking_uri=f"sqlite:///{tmp_path}/logs/mlflow.db")
        logger.log_hyperparams({"ckpt_path": path})
        logger.log_metrics({"train/loss": loss}, 3)
    assert (tmp_path / "logs").is_dir()
    assert Client.runs == {
        "run0": [("ckpt_path", "None"), ("train/loss", 2.0), ("train/loss", 1.0)],
        "run1": [("ckpt_path", "None"), ("train/loss", 3.0)],
    }
