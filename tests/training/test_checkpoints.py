"""Checkpoints: when they are written, what they bring back, and what is done about torn ones."""

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from macaw_lit.errors import ConfigError
from macaw_lit.training import checkpoints
from macaw_lit.training.checkpoint_files import newest, prune, require_same, settle
from macaw_lit.training.checkpoints import Checkpoints
from macaw_lit.training.metrics import MetricsFile
from macaw_lit.training.module import MacawModule

ROWS = 14


class Rows(Callback):
    """Keeps the rows that training was fed, and draws from each generator at each step, as noise in a model would."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.draws: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.uids += batch.uids
        self.draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)


@pytest.fixture
def fit(sizes, make_data, make_trainer, tmp_path) -> Callable[..., tuple[Rows, MacawModule, Trainer]]:
    def run(folder: str, ckpt: Path | None = None, batch_size: int = 2, **settings: Any):
        torch.manual_seed(0)
        rows, module = Rows(), MacawModule(sizes, sgd)
        saves = Checkpoints(str(tmp_path / folder), every_n_train_steps=1, keep=99)
        trainer = make_trainer(rows, saves, **{"max_epochs": 2} | settings)
        trainer.fit(module, make_data([Path()] * ROWS, batch_size=batch_size), ckpt_path=ckpt, weights_only=True)
        return rows, module, trainer

    return run


def test_every_checkpoint_leads_to_the_same_end(fit, tmp_path):
    whole, module, _ = fit("whole", accumulate_grad_batches=3)  # seven batches an epoch: steps of 3, 3 and 1
    assert len(list((tmp_path / "whole").glob("step*"))) == 6
    for step, batches in enumerate((3, 6, 7, 10, 13), 1):
        random.seed(step)
        np.random.seed(step)
        rows, resumed, trainer = fit("other", tmp_path / "whole" / f"step{step:07d}.ckpt", accumulate_grad_batches=3)
        assert rows.uids == whole.uids[2 * batches :], step
        assert rows.draws == whole.draws[batches:], step
        assert trainer.global_step == 6
        assert all(
            torch.equal(one, other) for one, other in zip(module.parameters(), resumed.parameters(), strict=True)
        )
    rows, _, trainer = fit("other", tmp_path / "whole" / "step0000006.ckpt", accumulate_grad_batches=3)
    assert (rows.uids, trainer.global_step) == ([], 6), "what is finished is not trained on"


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4)])
def test_another_number_of_rows_per_batch_sees_the_same_rows(fit, tmp_path, before, after):
    """As many processes as before, or half or twice as many, deal out the same order from the same place."""
    settings = {2: {"batch_size": 2, "accumulate_grad_batches": 2}, 4: {"batch_size": 4}}
    whole, module, _ = fit("whole", **settings[before])
    rows, resumed, trainer = fit("other", tmp_path / "whole" / "step0000002.ckpt", **settings[after])
    assert rows.uids == whole.uids[8:]
    assert trainer.global_step == 8
    for one, other in zip(module.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # float32 sums of four rows in another order


def test_checkpoints_are_written_by_steps_by_the_clock_and_at_the_end(make_data, make_trainer, sizes, tmp_path):
    for settings, names in (
        ({"every_n_train_steps": 2, "every_n_minutes": None}, ["step0000004.ckpt", "step0000005.ckpt"]),
        ({"every_n_minutes": None}, ["step0000005.ckpt"]),
        ({"every_n_minutes": 1e-9}, ["step0000004.ckpt", "step0000005.ckpt"]),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        trainer = make_trainer(Checkpoints(str(folder), **settings), max_steps=5)
        trainer.fit(MacawModule(sizes, sgd), make_data([Path()] * ROWS))
        assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", *names]
        assert (folder / "last.ckpt").readlink() == Path("step0000005.ckpt")


def test_lightning_s_own_callback_may_keep_the_best_beside(make_data, make_trainer, sizes, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="train/loss", save_top_k=1, every_n_train_steps=2)
    trainer = make_trainer(Checkpoints(str(tmp_path / "own")), best, max_steps=4)
    trainer.fit(MacawModule(sizes, sgd), make_data([Path()] * ROWS))
    (path,) = (tmp_path / "best").iterdir()
    assert torch.load(path, weights_only=True)["global_step"] in (2, 4)


def test_a_process_that_is_alone_asks_nobody_when_to_save(fit, monkeypatch, tmp_path):
    """An answer would have to be waited for at every step."""

    def reduce(self: object, tensor: object, *_: object, reduce_op: str = "mean") -> object:
        assert reduce_op != "max"
        return tensor

    monkeypatch.setattr(SingleDeviceStrategy, "reduce", reduce)
    fit("alone", max_steps=2)
    assert (tmp_path / "alone" / "step0000001.ckpt").is_file()


@pytest.mark.parametrize("settings", [{"every_n_train_steps": 0}, {"every_n_minutes": -1}, {"keep": 0}])
def test_settings_that_mean_nothing_are_refused(settings, tmp_path):
    with pytest.raises(ConfigError, match=f"callbacks.checkpoint.{next(iter(settings))}="):
        Checkpoints(str(tmp_path), **settings)


def test_a_failed_write_is_one_line_and_leaves_what_was_there(fit, monkeypatch, tmp_path):
    def fail(part: Path, path: Path) -> None:
        if path.name == "step0000003.ckpt":
            raise OSError(28, "No space left on device", str(part))
        settle(part, path)

    monkeypatch.setattr(checkpoints, "settle", fail)
    with pytest.raises(
        ConfigError, match=r"step0000003.ckpt cannot be written \(.*No space left.* bytes, .* are free;"
    ):
        fit("full")
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == [
        "last.ckpt", "step0000001.ckpt", "step0000002.ckpt"
    ]  # fmt: skip


# Files


def write(folder: Path, step: int, shape: str) -> Path:
    """A checkpoint as one file, or as a folder of two."""
    path = folder / f"step{step:07d}.ckpt"
    part = path.with_name(path.name + ".part")
    if shape == "file":
        torch.save({"step": step, "weights": torch.ones(1000)}, part)
    else:
        (part / "inner").mkdir(parents=True)
        torch.save({"step": step}, part / "meta.pt")
        (part / "inner" / "shard.distcp").write_bytes(b"x" * 1000)
    settle(part, path)
    return path


@pytest.mark.parametrize("shape", ["file", "folder"])
def test_the_newest_whole_one_is_found(tmp_path, shape):
    assert newest(tmp_path / "nowhere") == (None, [])
    paths = [write(tmp_path, step, shape) for step in (9, 10, 11)]
    assert newest(tmp_path) == (paths[2], [])
    damage = paths[2] if shape == "file" else paths[2] / "inner" / "shard.distcp"
    damage.write_bytes(damage.read_bytes()[:-100])
    (tmp_path / "step0000012.ckpt.part").write_bytes(b"half")
    found, lines = newest(tmp_path)
    assert found == paths[1]
    assert [line.partition(": ")[0] for line in lines] == [str(paths[2])]
    assert write(tmp_path, 11, shape) == paths[2]
    assert newest(tmp_path) == (paths[2], []), "a damaged one is replaced"
    assert write(tmp_path, 3, shape) == newest(tmp_path)[0], "a run that was taken up at an earlier step is newer"
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step0000003.ckpt", "step0000011.ckpt"]
    assert (tmp_path / "last.ckpt").resolve() == tmp_path / "step0000003.ckpt"


@pytest.mark.parametrize("shape", ["file", "folder"])
def test_the_last_one_is_the_newest_though_the_clock_was_set_back(tmp_path, shape):
    for step in (1, 2):
        os.utime(write(tmp_path, step, shape), (9e9, 9e9))
    for step in (3, 4):
        path = write(tmp_path, step, shape)
        assert newest(tmp_path) == (path, [])
        prune(tmp_path, 2)
        assert (tmp_path / "last.ckpt").resolve() == path
        assert path.exists()


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found(tmp_path, place):
    path = write(tmp_path, 1, "file")
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    found, (line,) = newest(tmp_path)
    assert found is None
    assert line.startswith(f"{path}: skipped, it")


def test_another_model_is_told_by_its_first_difference():
    model = {"llm": {"config": {"hidden_size": 8}, "tokenizer": "/a/b"}, "encoders": [{"width": 3}]}
    made_of = {"model": model, "optimizer": "adamw"}

    def now(**parts: Any) -> dict[str, Any]:
        return {**made_of, "model": {**model, **parts}}

    require_same(made_of, now(llm={**model["llm"], "tokenizer": "/moved/b"}))
    with pytest.raises(ConfigError, match=r"of another model: model.encoders.0.width was 3, now is 4"):
        require_same(made_of, now(encoders=[{"width": 4}]))
    with pytest.raises(ConfigError, match=r"model.llm.config.extra was None, now is 1"):
        require_same(made_of, now(llm={"config": {"hidden_size": 8, "extra": 1}, "tokenizer": "/a/b"}))
    with pytest.raises(ConfigError, match=r"of another optimizer: optimizer was adamw, now is MuonAdamW"):
        require_same(made_of, {**made_of, "optimizer": "MuonAdamW"})


# metrics.csv


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_metrics_go_on_after_the_rows_of_the_checkpoint(tmp_path):
    first = MetricsFile(str(tmp_path))
    first.log_metrics({"loss": 1.5}, 0)
    first.log_metrics({"loss": torch.tensor(1.25), "rate": 2}, 1)
    first.settle()
    kept = first.rows
    first.log_metrics({"loss": 9.0}, 2)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,1")  # torn
    second = MetricsFile(str(tmp_path))
    second.go_on(kept)
    second.log_metrics({"val": 7.0}, 2)
    assert rows_of(tmp_path) == [
        {"loss": "1.5", "rate": "", "step": "0", "val": ""},
        {"loss": "1.25", "rate": "2", "step": "1", "val": ""},
        {"loss": "", "rate": "", "step": "2", "val": "7.0"},
    ]
    third = MetricsFile(str(tmp_path))
    third.log_metrics({"loss": 3.0}, 0)
    assert rows_of(tmp_path) == [{"loss": "3.0", "step": "0"}], "a new run begins anew"
