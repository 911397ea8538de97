"""Sweeps: jobs that are done are not run again, one that fails does not stop the others, and what the summary says."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from macaw_lit import record
from macaw_lit.cli import command, conf_dir, first_process, job_overrides, run_folder
from macaw_lit.sweep import main as summary

GRID = ["-m", "experiment=demo"]
SEARCH = [*GRID, "hparams_search=optuna", "seed=0", "optim.lr=tag(log,interval(1e-4,1e-1))", "aligner=macaw,linear"]


def job(cfg: DictConfig) -> float:
    """Stands for a training: best at lr = 0.01 with the linear aligner; notes that it ran, fails while `fail` is there.

    Seed 7 gives a result that is not a number.
    """
    folder = run_folder()
    with (folder.parent / "ran.txt").open("a") as file:
        file.write(f"{folder.name}\n")
    if (folder.parent / f"fail{folder.name}").exists():
        raise record.MacawError("its data is gone")
    value = abs(float(cfg.optim.lr) - 0.01) + cfg.model.aligner._target_.endswith("MacawAligner") + cfg.seed
    value = float("nan") if cfg.seed == 7 else value
    record.write(folder, "done", job_overrides(), optimized_metric="val/loss", value=value, metrics={"val/loss": value})
    return value


@pytest.fixture
def sweep(call: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str, task: Callable[[DictConfig], Any] = job) -> tuple[int, str, str]:
        return call(command("train")(task), tmp_path, *words)

    return run


def ran(folder: Path) -> list[str]:
    """The numbers of the jobs that ran since this was last asked."""
    path = folder / "ran.txt"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def jobs(folder: Path) -> dict[str, list[str]]:
    return {name: found["overrides"] for name, found in record.read_all(folder).items()}


# Grids


def test_a_failing_job_is_named_and_alone_runs_again(sweep, tmp_path):
    words = (*GRID, "aligner=macaw,linear", "seed=1,2", "optim.lr=0.01", f"hydra.sweep.dir={tmp_path}/s")
    (tmp_path / "s").mkdir()
    for number in (1, 3):
        (tmp_path / "s" / f"fail{number}").touch()
    code, _, err = sweep(*words)
    assert code == 1
    assert ran(tmp_path / "s") == ["0", "1", "2", "3"], "a failure does not stop the others"
    line = err.splitlines()[-1]
    assert line.startswith(
        "error: job 1 (experiment=demo aligner=macaw seed=2 optim.lr=0.01) failed: its data is gone (1 more failed)"
    )
    assert f"hydra.sweep.dir={tmp_path}/s" in line
    assert "Traceback" not in err
    assert record.read(tmp_path / "s" / "3")["error"] == "its data is gone"
    before = jobs(tmp_path / "s")
    for number in (1, 3):
        (tmp_path / "s" / f"fail{number}").unlink()
    code, out, _ = sweep(*words)
    assert (code, ran(tmp_path / "s")) == (0, ["1", "3"])
    assert "job 0 is done" in out
    assert jobs(tmp_path / "s") == before, "numbers mean what they meant"
    assert [found["status"] for found in record.read_all(tmp_path / "s").values()] == ["done"] * 4


def test_a_bug_in_a_job_keeps_its_traceback_and_does_not_stop_the_others(sweep, tmp_path):
    def buggy(cfg: DictConfig) -> float:
        return 1 / 0 if cfg.seed == 1 else job(cfg)

    code, _, err = sweep(*GRID, "seed=1,2", f"hydra.sweep.dir={tmp_path}/s", task=buggy)
    assert (code, ran(tmp_path / "s")) == (1, ["1"])
    assert "in buggy" in err
    assert err.splitlines()[-1].startswith(
        "error: job 0 (experiment=demo seed=1) failed: ZeroDivisionError: division by zero"
    )


def test_the_folder_of_another_sweep_is_refused(sweep, tmp_path):
    assert sweep(*GRID, "seed=1,2", f"hydra.sweep.dir={tmp_path}/s")[0] == 0
    code, _, err = sweep(*GRID, "seed=2,3", f"hydra.sweep.dir={tmp_path}/s")
    assert code == 1
    assert f"{tmp_path}/s/0 holds a job of another sweep (seed=1), not seed=2" in err
    assert record.read(tmp_path / "s" / "0")["overrides"] == ["experiment=demo", "seed=1"], "what was there stays"


def test_a_job_starts_its_other_processes_as_itself(sweep, tmp_path):
    """Lightning starts them by `sys.argv` and `hydra.run.dir`: a whole sweep must not start within a job."""
    from lightning.fabric.strategies.launchers.subprocess_script import _hydra_subprocess_cmd

    seen = []
    sweep(*GRID, "seed=1,2", f"hydra.sweep.dir={tmp_path}/s", task=lambda _: seen.append(_hydra_subprocess_cmd(1)[0]))
    for number, words in enumerate(seen):
        assert "-m" not in words[2:]
        assert f"seed={number + 1}" in words
        assert f'hydra.run.dir="{tmp_path}/s/{number}"' in words
    assert len(seen) == 2


# Searches


def test_a_search_stopped_anywhere_goes_the_way_it_would_have_gone(sweep, tmp_path):
    settings = ["hydra.sweeper.n_trials=5", "hydra.sweeper.n_startup_trials=2"]
    assert sweep(*SEARCH, *settings, f"hydra.sweep.dir={tmp_path}/whole")[0] == 0
    whole = jobs(tmp_path / "whole")
    assert [*whole] == [*"01234"]
    assert len({tuple(words) for words in whole.values()}) == 5

    def stopped(cfg: DictConfig) -> float:
        if run_folder().name in ("1", "3") and not (run_folder() / "stopped").exists():
            (run_folder() / "stopped").touch()
            raise KeyboardInterrupt
        return job(cfg)

    codes = [sweep(*SEARCH, *settings, f"hydra.sweep.dir={tmp_path}/s", task=stopped)[0] for _ in range(3)]
    assert codes == [130, 130, 0]
    assert ran(tmp_path / "s") == [*"01234"], "each once"
    assert jobs(tmp_path / "s") == whole


def test_a_search_finds_the_best_and_leaves_failures_for_the_next_start(sweep, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "fail1").touch()
    words = [*SEARCH, "hydra.sweeper.n_trials=4", f"hydra.sweep.dir={tmp_path}/s"]
    code, out, err = sweep(*words)
    assert (code, ran(tmp_path / "s")) == (1, ["0", "1", "2", "3"])
    assert "error: job 1 (" in err.splitlines()[-1]
    (tmp_path / "s" / "fail1").unlink()
    failed = record.read(tmp_path / "s" / "1")["overrides"]
    code, out, _ = sweep(*words)
    assert (code, ran(tmp_path / "s")) == (0, ["1"])
    assert record.read(tmp_path / "s" / "1")["overrides"] == failed, "with the same values"
    values = {name: found["value"] for name, found in record.read_all(tmp_path / "s").items()}
    assert f"best of 4: job {min(values, key=values.get)} with val/loss=" in out
    assert out.splitlines()[-1] == f"{tmp_path}/s"
    code, _, _ = sweep(*words[:-2], "hydra.sweeper.n_trials=6", words[-1])
    assert (code, ran(tmp_path / "s")) == (0, ["4", "5"]), "more of them"


def test_a_search_stays_in_its_ranges(sweep, tmp_path):
    words = [*GRID, "hparams_search=optuna", "hydra.sweeper.n_trials=6", "optim.lr=interval(0.1,0.2)"]
    words += ["data.batch_size=range(2,9,2)", "trainer.max_steps=int(interval(3,5))", "seed=choice(1,4)"]
    assert sweep(*words, f"hydra.sweep.dir={tmp_path}/s")[0] == 0
    found = [dict(word.split("=", 1) for word in chosen) for chosen in jobs(tmp_path / "s").values()]
    assert all(0.1 <= float(each["optim.lr"]) <= 0.2 for each in found)
    assert {int(each["data.batch_size"]) for each in found} <= {2, 4, 6, 8}
    assert {int(each["trainer.max_steps"]) for each in found} <= {3, 4, 5}
    assert {each["seed"] for each in found} <= {"1", "4"}


def test_a_search_at_random_draws_the_same_again(sweep, tmp_path):
    words = [*SEARCH, "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=4"]
    for name in ("one", "two"):
        assert sweep(*words, f"hydra.sweep.dir={tmp_path}/{name}")[0] == 0
    assert jobs(tmp_path / "one") == jobs(tmp_path / "two")
    assert len({words[-2] for words in jobs(tmp_path / "one").values()}) == 4


MISTAKES = {
    "another search by this name": ["optim.lr=interval(1e-3,1e-1)"],
    "nothing to search": ["optim.lr=1", "aligner=linear"],
    "hydra.sweeper.n_trials=0: expected at least 1": ["hydra.sweeper.n_trials=0"],
    "hydra.sweeper.sampler=tpf: expected tpe or random": ["hydra.sweeper.sampler=tpf"],
    "optim.lr=interval(1,0): expected a lower end below the upper one": ["optim.lr=interval(1,0)"],
    "interval(0,1)): expected a lower end": ["optim.lr=tag(log,interval(0,1))"],
    "sqlite:////nowhere/study.db cannot be opened": ["hydra.sweeper.storage=sqlite:////nowhere/study.db"],
    "direction=up: expected minimize or maximize": ["hydra.sweeper.direction=up"],
    "did you mean aligner": ["aligne=macaw,linear"],
}


@pytest.mark.parametrize("expected", MISTAKES)
def test_a_search_that_cannot_be_is_one_line(sweep, tmp_path, expected):
    words = [*SEARCH, f"hydra.sweep.dir={tmp_path}/s", "hydra.sweeper.n_trials=1"]
    if "another" in expected:
        assert sweep(*words)[0] == 0
    code, _, err = sweep(*words, *MISTAKES[expected])
    assert (code, err.count("\n")) == (1, 1), err
    assert expected in err


def test_a_metric_that_is_not_measured_ends_the_search_at_once(sweep, tmp_path):
    code, _, err = sweep(*SEARCH, f"hydra.sweep.dir={tmp_path}/s", task=lambda cfg: None)
    assert (code, len([*(tmp_path / "s").glob("[0-9]")])) == (1, 1)
    assert "job 0 did not measure optimized_metric=val/loss" in err


def test_a_result_that_is_no_number_does_not_guide_the_search(sweep, tmp_path):
    words = [*GRID, "hparams_search=optuna", "seed=7,1", "hydra.sweeper.n_trials=5"]
    code, out, _ = sweep(*words, f"hydra.sweep.dir={tmp_path}/s")
    assert code == 0
    tried = {words[-1] for words in jobs(tmp_path / "s").values()}
    assert tried == {"seed=7", "seed=1"}, "or else the test shows nothing"
    assert "seed=1" in out.splitlines()[-2]


def test_a_search_is_not_for_several_processes(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = sweep(*SEARCH, f"hydra.sweep.dir={tmp_path}/s")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: a search in 2 processes, of which each would choose for itself: start it without")
    assert not (tmp_path / "s").exists()


# Launchers


def script(folder: Path, before: str = "") -> Path:
    """A command that runs `job`, after the line `before`."""
    path = folder / "job.py"
    path.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sweep import job
from macaw_lit.cli import command
def task(cfg):
    {before}
    return job(cfg)
if __name__ == "__main__":
    command("train")(task)()
""")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "search"])
def test_a_sweep_that_is_started_twice_runs_each_job_once(tmp_path, kind):
    words = ["seed=1,2,3", "hydra.sweep.dir=s"]
    words += ["hparams_search=optuna", "hydra.sweeper.n_trials=3"] if kind == "search" else []
    command = [sys.executable, str(script(tmp_path, "import time; time.sleep(1)")), *GRID, *words]
    starts = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [start.communicate()[0] for start in starts]
    assert [start.returncode for start in starts] == [0, 0]
    assert sorted(ran(tmp_path / "s")) == ["0", "1", "2"]
    if kind == "grid":
        assert sum(output.count(" is done: ") for output in outputs) == 3, "what the other ran is waited for and taken"


@pytest.mark.slow
def test_jobs_side_by_side_fail_alone_too(tmp_path):
    """In processes of their own, as a script that is run: joblib starts processes that open sockets."""
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "fail1").touch()
    words = [
        sys.executable,
        str(script(tmp_path)),
        *GRID,
        "seed=1,2,3",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    for code, expected in ((1, {"0", "1", "2"}), (0, {"1"})):
        done = subprocess.run([*words, f"hydra.sweep.dir={folder}"], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, set(ran(folder))) == (code, expected), done.stderr
        (folder / "fail1").unlink(missing_ok=True)
    assert "failed: its data is gone" not in done.stderr


def test_slurm_gets_a_task_for_each_device():
    words = ["hydra/launcher=slurm", "trainer.devices=8", "trainer.num_nodes=2", "hydra.launcher.partition=gpu"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        launcher = compose("train", overrides=words, return_hydra_config=True).hydra.launcher
        plain = compose("train", overrides=["hydra/launcher=submitit_slurm"], return_hydra_config=True).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node, launcher.partition) == (2, 8, 8, "gpu")
    assert launcher._target_ == plain._target_
    assert launcher._target_.endswith("SlurmLauncher")


def test_an_unknown_launcher_is_one_line(sweep):
    code, _, err = sweep(*GRID, "hydra/launcher=joblip", "seed=1,2")
    assert (code, err.count("\n")) == (1, 1)
    assert "did you mean joblib?" in err
    assert "pip install 'macaw-lit[sweeps]'" in err


# Names of run folders


def test_processes_of_a_launcher_agree_on_the_run_folder(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    code, _, err = sweep("experiment=demo")
    assert (code, err.count("\n")) == (1, 1)
    assert "torchrun without --rdzv-id" in err
    assert sweep("experiment=demo", f"hydra.run.dir={tmp_path}/own")[0] == 0, "a folder that is given needs no name"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert sweep("experiment=demo")[0] == 0
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for name, value in {"NTASKS": "2", "JOB_ID": "31", "STEP_ID": "0", "PROCID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert sweep("experiment=demo")[0] == 0
    assert {path.parent.name for path in (tmp_path / "logs/train/runs").glob("*/metrics.json")} == {
        "torchrun-mine",
        "slurm-31.0",
    }


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_one_process_of_all_is_the_first(monkeypatch, names, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert first_process() is first


# The summary


def test_the_summary_shows_what_differs_and_what_came_of_it(sweep, call, tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "fail3").touch()
    sweep(*GRID, "aligner=macaw,linear", "optim.lr=0.01,0.02", f"hydra.sweep.dir={folder}")
    code, out, err = call(summary, tmp_path, f"path={folder}")
    assert (code, err) == (0, "")
    assert "best val/loss: 0 by job 2 (aligner=linear optim.lr=0.01)" in out
    assert "job 3 failed: its data is gone" in out
    assert "experiment" not in out, "the same in all"
    rows = json.loads((folder / "summary.json").read_text())
    assert [(row["job"], row["aligner"], row["optim.lr"]) for row in rows] == [
        ("0", "macaw", "0.01"),
        ("1", "macaw", "0.02"),
        ("2", "linear", "0.01"),
        ("3", "linear", "0.02"),
    ]
    assert [row["val/loss"] for row in rows[:3]] == pytest.approx([1.0, 1.01, 0.0])
    assert "val/loss" not in rows[3]
    with (folder / "summary.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 3 + ["failed"]
    with Image.open(folder / "summary.png") as picture:
        assert picture.width > picture.height > 300
    assert call(summary, tmp_path, f"path={folder}", "direction=maximize")[1].count("best val/loss: 1.01 by job 1") == 1


def test_the_summary_of_seeds_has_their_mean_and_what_is_still_running(sweep, call, tmp_path):
    sweep(*GRID, "aligner=macaw,linear", "seed=0,1,4", "optim.lr=0.01", "hydra.sweep.dir=s")
    for number in (2, 5):
        (tmp_path / "s" / f"{number}" / "metrics.json").unlink()
    code, out, err = call(summary, tmp_path, "path=s")
    assert (code, err) == (0, "")
    assert out.count("unfinished") == 2
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert ["macaw", "1.5", "0.7071", "2"] in cells, "of 1 and 2"
    assert ["linear", "0.5", "0.7071", "2"] in cells, "of 0 and 1"
    for number in range(6):
        (tmp_path / "s" / f"{number}" / "metrics.json").unlink(missing_ok=True)
    code, out, err = call(summary, tmp_path, "path=s")
    assert (code, out.count("unfinished")) == (1, 6)
    assert err == "error: metric=val/loss: no job of s measured it; figures that there are: none\n"


def test_the_summary_of_a_search_looks_where_the_search_did(sweep, call, tmp_path):
    words = [*SEARCH, "hydra.sweeper.n_trials=7", "hydra.sweeper.direction=maximize", "hydra.sweep.dir=s"]
    out = sweep(*words)[1]
    best = out.splitlines()[-2].partition(": job ")[2].split()[0]
    code, out, _ = call(summary, tmp_path, "path=s")
    assert code == 0
    assert f" by job {best} (" in out.splitlines()[-2]
    with Image.open(tmp_path / "s" / "summary.png") as picture:
        assert picture.width > picture.height > 300


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["path=nowhere"], "nowhere holds no job; expected the folder of a sweep"),
        (["path=s", "metric=val/los"], "metric=val/los: no job of s measured it; figures that there are: val/loss"),
        (["path=s", "direction=up"], "direction=up: expected minimize or maximize"),
        ([], "path must be given"),
    ],
)
def test_a_summary_that_cannot_be_is_one_line(sweep, call, tmp_path, words, expected):
    assert sweep(*GRID, "seed=1", "hydra.sweep.dir=s")[0] == 0
    (tmp_path / "s" / "7").mkdir()
    (tmp_path / "s" / "7" / "metrics.json").write_text('{"status": ')
    code, _, err = call(summary, tmp_path, *words)
    assert (code, err.count("\n")) == (1, 1)
    assert expected in err


# With a real training


@pytest.mark.slow
def test_a_run_leaves_its_metrics_and_its_version(tiny_run):
    found = record.read(tiny_run.folder)
    assert found["status"] == "done"
    assert found["overrides"] == tiny_run.words
    assert found["value"] == found["metrics"]["val/loss"] > 0
    assert (found["metrics"]["steps"], found["metrics"]["seconds"] > 0) == (4, True)
    assert 0 <= found["metrics"]["modality_use/passed"] <= found["metrics"]["modality_use/gating_types"]
    assert len(found["version"].get("commit", "0" * 40)) == 40
    with (tiny_run.folder / "metrics.csv").open() as file:
        last = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]][-1]
    assert found["value"] == pytest.approx(last, rel=1e-5), "the CSV has fewer digits"
