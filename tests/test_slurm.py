"""SLURM, by scripts in its place: the batch script of the guide, and what the launcher of sweeps submits."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import submitit
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from macaw_lit import train
from macaw_lit.cli import conf_dir
from macaw_lit.training import signals

GUIDE = Path(__file__).parents[1] / "docs" / "clusters.md"


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """The guide's batch script; `…` stands for what the user adds."""
    (found,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", GUIDE.read_text(), re.DOTALL)
    path = tmp_path / "macaw.sbatch"
    path.write_text(found.replace(" … ", " "), encoding="utf-8")
    return path


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("task", "code", "requeued"),
    [
        ("mkdir -p logs/train/runs/slurm-31; touch logs/train/runs/slurm-31/metrics.json", 0, ""),
        ("exit 0  # stopped by the signal", 0, "requeue 31\n"),
        ("exit 1  # a mistake, which would come again", 1, ""),
    ],
)
def test_the_batch_script_requeues_what_is_not_done_and_nothing_else(batch, tmp_path, task, code, requeued):
    script(tmp_path / "srun", f'echo "$*" >> srun.log\n{task}')
    script(tmp_path / "scontrol", 'echo "$*" >> scontrol.log')
    shell = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "31", "SLURM_CPUS_PER_TASK": "8"}
    done = subprocess.run(["bash", str(batch)], cwd=tmp_path, env=shell, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == requeued
    started = (tmp_path / "srun.log").read_text()
    assert started.startswith("--kill-on-bad-exit=1 --cpus-per-task=8 python -m macaw_lit.train experiment=macaw_7b ")
    assert " paths.run_dir=logs/train/runs/slurm-31 " in started


def test_its_tasks_are_those_that_the_trainer_expects(batch):
    text = batch.read_text()
    settings = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))
    words = dict(re.findall(r"(trainer\.\w+|ckpt_path)=(\S+)", text))
    assert (words["trainer.num_nodes"], words["trainer.devices"]) == (settings["nodes"], settings["ntasks-per-node"])
    assert (settings["signal"].partition("@")[0], words["ckpt_path"]) == ("SIGUSR1", "auto")


def test_what_the_launcher_submits(tmp_path, monkeypatch):
    script(tmp_path / "srun", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    submitted: list[str] = []

    def map_array(executor: submitit.AutoExecutor, *jobs: object) -> list[object]:
        submitted.append(executor._executor._make_submission_file_text("job", "id"))
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", map_array)
    words = ["hydra/launcher=slurm", "trainer.devices=8", "trainer.num_nodes=2", f"hydra.sweep.dir={tmp_path}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[*words, "hydra.job.num=0", "hydra.job.id=0"], return_hydra_config=True)
    launcher = instantiate(cfg.hydra.launcher, submitit_folder=str(tmp_path))
    launcher.setup(hydra_context=None, task_function=None, config=cfg)
    launcher.launch([["seed=1"], ["seed=2"]], 0)
    (text,) = submitted
    settings = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))
    expected = {"nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "8", "time": "1440"}
    assert expected.items() <= settings.items()
    assert settings["signal"] == "USR2@120"
    assert settings["open-mode"] == "append"
    setup, started = text.split("# setup\n")[1].split("# command\n")
    assert setup.strip() == "export SLURM_KILL_BAD_EXIT=1 SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
    assert "srun " in started
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_a_job_notes_signals_where_training_looks_for_them():
    """Launchers hand their jobs copies of the command and of all objects that it names; modules stay what they are."""
    assert train.signals is signals
    assert not [name for name, value in vars(train).items() if isinstance(value, signals.StopSignals)]
