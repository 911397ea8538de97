"""What is watched while training: the ledger through a checkpoint and back, and the health of the alignment."""

import itertools
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from macaw_lit.data.accounts import is_certain
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.training.callbacks import CHECK_EVERY, AlignmentHealth, Ledger, PrintWeights
from macaw_lit.training.metrics import MetricsFile
from macaw_lit.training.module import MacawModule
from macaw_lit.training.optim import adamw


@pytest.fixture
def paths(picture, tmp_path) -> list[Path]:
    """Eight rows: four good pictures, a text, a file that is not there, an empty one, and a text named .jpg."""
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.write_bytes(b"")
    text.write_text("no picture\n" * 20)
    return [picture(10), tmp_path / "gone.jpg", picture(90), empty, Path(), picture(170), text, picture(250)]


def module_of(sizes) -> MacawModule:
    return MacawModule(sizes, lambda model: adamw(model, lr=0.01, weight_decay=0.0))


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ledger.json").read_text())


SKIPPED = {"missing": 1, "empty": 1, "unreadable": 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_sample_is_accounted_for(sizes, make_data, make_trainer, tmp_path, paths, num_workers):
    metrics = Metrics()
    trainer = make_trainer(Ledger(max_skip_rate=1), max_epochs=2, logger=metrics, log_every_n_steps=100)
    trainer.fit(module_of(sizes), make_data(paths, num_workers=num_workers, max_skip_rate=1))
    ledger = written(tmp_path)
    epoch = {"seen": 11, "used": 8, "truncated": 0, "skipped": SKIPPED}
    for number in ("0", "1"):
        account = ledger["epochs"][number]["shades"]
        assert account.pop("first").startswith("shades/")
        assert account == epoch, "each unusable row has a stand-in"
    assert ledger["skipped"] == dict.fromkeys(SKIPPED, 2)
    assert (ledger["seen"], ledger["used"], ledger["truncated"]) == (22, 16, 0)
    assert ledger["sources"]["shades"]["skipped"] == ledger["skipped"]
    assert ledger["read"] == [{"split": "train", "source": "shades", "usable": 8, "rejected": {}}]
    assert {step: mix for step, mix in metrics.steps.items() if "mix/shades" in mix} == {
        step: {"mix/shades": 8.0, "skipped/shades": 3.0} for step in (4, 8)
    }


@pytest.mark.parametrize("num_workers", [0, 1])
def test_held_out_samples_are_accounted_for_too(sizes, make_data, make_trainer, tmp_path, paths, num_workers):
    data = make_data(paths, num_workers=num_workers, max_skip_rate=1)
    data.sources["heldout"] = {"asked": data.sources["train"]["shades"]}
    trainer = make_trainer(Ledger(max_skip_rate=1), max_epochs=2)
    trainer.fit(module_of(sizes), data)
    account = written(tmp_path)["heldout"]["asked"]
    assert account.pop("first").startswith("shades/")
    assert account == {"seen": 11, "used": 8, "truncated": 0, "skipped": SKIPPED}, "of one validation, not of both"
    assert written(tmp_path)["seen"] == 22, "what is trained on is counted apart"


def test_too_many_held_out_samples_stop_training(sizes, make_data, make_trainer, tmp_path, paths, picture):
    good = [picture(level) for level in (10, 90, 170, 250)]
    data = make_data(good, max_skip_rate=1)
    bad = make_data(paths, max_skip_rate=1)
    data.sources["heldout"] = {"asked": bad.sources["train"]["shades"]}
    line = stopped(sizes, data, make_trainer(Ledger(max_skip_rate=0.2), max_epochs=2))
    assert "heldout source 'asked': 3 of 11 rows were skipped" in line
    assert list(written(tmp_path)["epochs"]) == ["0"], "before the next epoch begins"


def test_a_run_that_ended_with_too_many_held_out_samples_lost_says_so_again_when_it_is_continued(
    sizes, make_data, make_trainer, tmp_path, paths, picture
):
    data = make_data([picture(level) for level in (10, 90, 170, 250)], max_skip_rate=1)
    data.sources["heldout"] = {"asked": make_data(paths, max_skip_rate=1).sources["train"]["shades"]}
    for resume, rate in ((None, 0.2), (tmp_path / "last.ckpt", 0.2), (tmp_path / "last.ckpt", 0.5)):
        ledger = Ledger(max_skip_rate=rate)
        trainer = make_trainer(ledger, max_epochs=1)
        trainer.fit(module_of(sizes), data, ckpt_path=resume)
        if rate == 0.5:
            ledger.settle()  # the limit has been raised
            break
        with pytest.raises(DataError, match="the model is saved, but heldout source 'asked': 3 of 11 rows"):
            ledger.settle()
        trainer.save_checkpoint(tmp_path / "last.ckpt")


def test_a_few_held_out_samples_tell_little(sizes, make_data, make_trainer, paths):
    """2 of 4 are lost where one of five may be: by Poisson's distribution that comes by chance too often."""
    data = make_data(paths, max_skip_rate=1)
    data.sources["heldout"] = {"asked": data.sources["train"]["shades"]}
    ledger = Ledger(max_skip_rate=0.2)
    trainer = make_trainer(ledger, max_steps=1, limit_val_batches=1, val_check_interval=1)
    trainer.fit(module_of(sizes), data)
    assert sum(ledger._heldout["asked"]["skipped"].values()) > 0
    ledger.settle()


def test_what_arrived_is_printed_and_what_did_not_is_said(sizes, model, make_batch, make_trainer, tmp_path, capsys):
    state = model.encoders["vision"].visual.state_dict()
    clip = tmp_path / "clip.pt"
    torch.save({**{f"visual.{name}": tensor for name, tensor in state.items()}, "logit_scale": torch.ones(1)}, clip)
    module = MacawModule(sizes, lambda model: adamw(model, lr=0.01, weight_decay=0.0), pretrained={"vision": str(clip)})
    batches = DataLoader([make_batch(model, [(1, {})])], batch_size=None)
    make_trainer(PrintWeights(), max_steps=1).fit(module, batches)
    printed = capsys.readouterr().out
    identity = module.model.config["identities"]["vision"]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]
    assert cells == [
        ["vision", str(len(state)), "0", "0", "0", "1", identity["sha256"][:8]],
        ["hearing", *"------"],
        ["llm", *"------"],
    ]
    told = " ".join(printed.split())
    assert "vision: clip.pt states nothing of activation, heads or preprocessing" in told
    assert "llm: as initialised, no pretrained weights" in told
    assert set(module.model.config["identities"]) == {"vision"}


def test_rows_that_were_cut_are_counted_apart(sizes, model, make_batch, make_trainer, tmp_path):
    batch = make_batch(model, [(1, {}), (2, {}), (3, {})])
    batch.sources, batch.truncated, batch.epoch = ["a", "b", "b"], ("b",), 4
    make_trainer(Ledger(), max_steps=3).fit(module_of(sizes), DataLoader([batch] * 3, batch_size=None))
    a = {"seen": 3, "used": 3, "truncated": 0, "skipped": {}}
    b = {"seen": 6, "used": 3, "truncated": 3, "skipped": {}}
    whole = {"seen": 9, "used": 6, "truncated": 3, "skipped": {}}
    assert written(tmp_path) == {**whole, "sources": {"a": a, "b": b}, "epochs": {"4": {"a": a, "b": b}}}


def test_a_resumed_run_goes_on_counting(sizes, make_data, make_trainer, tmp_path, paths):
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = Ledger(max_skip_rate=1)
    make_trainer(whole, saves, max_steps=7).fit(module_of(sizes), make_data(paths, batch_size=3))  # 3 batches an epoch
    for step in (2, 3, 4):
        resumed, folder = Ledger(max_skip_rate=1), tmp_path / f"from{step}"
        trainer = make_trainer(resumed, max_steps=7, folder=folder)
        trainer.fit(module_of(sizes), make_data(paths, batch_size=3), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert resumed.state_dict() == whole.state_dict(), step
        assert written(folder) == written(tmp_path)
    epochs = whole.state_dict()["epochs"]
    assert [epochs[number]["shades"]["used"] for number in ("0", "1", "2")] == [8, 8, 3]
    assert whole.accounts().by_source()["shades"].skipped.total() > 6


def test_the_epoch_is_the_mixtures_where_lightning_counts_on(sizes, make_data, make_trainer, tmp_path, paths):
    last = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    good = [path for path in paths if path.name.startswith("grey")]
    make_trainer(Ledger(), last, max_steps=1, max_epochs=-1).fit(module_of(sizes), make_data(good))
    resumed = Ledger()
    trainer = make_trainer(resumed, max_steps=2, max_epochs=-1, folder=tmp_path / "on")
    trainer.fit(module_of(sizes), make_data(good), ckpt_path=tmp_path / "last.ckpt")
    assert list(resumed.state_dict()["epochs"]) == ["0"], "both batches are of the mixture's first epoch"


# When a run stops


def test_so_few_rows_tell_nothing():
    assert not is_certain(1, 20, 0.01)
    assert not is_certain(3, 99, 0.01), "less than one bad row was to be expected"
    assert not is_certain(4, 100, 0.01)
    assert is_certain(5, 100, 0.01), "1 expected, 3 standard deviations more"
    assert not is_certain(130, 10_000, 0.01)
    assert is_certain(131, 10_000, 0.01)
    assert is_certain(1, 1_000_000, 0)
    assert not is_certain(0, 1_000_000, 0)
    assert not is_certain(100, 100, 1.0)


def test_a_source_with_half_of_the_permitted_rate_goes_on():
    draw, stopped = random.Random(0), 0
    for _ in range(200):  # runs of 5,000 rows, looked at every 40
        lost = list(itertools.accumulate(draw.random() < 0.005 for _ in range(5000)))
        stopped += any(is_certain(lost[seen - 1], seen, 0.01) for seen in range(40, 5001, 40))
    # By Poisson's distribution 5 of 100 come by chance once in 6,000 times, and later looks are ever surer.
    assert stopped <= 2


def stopped(sizes, data, trainer) -> str:
    """The line that a run ends with."""
    try:  # pytest.raises would keep workers' queues in a reference cycle, and torch then waits five seconds
        trainer.fit(module_of(sizes), data)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_strict_stops_at_the_first_bad_sample(sizes, make_data, make_trainer, tmp_path, paths, num_workers):
    good = [path for path in paths if path.name.startswith("grey")]
    data = make_data([*good * 4, tmp_path / "gone.jpg"], num_workers=num_workers)
    trainer = make_trainer(Ledger(max_skip_rate=0), max_epochs=2)
    line = stopped(sizes, data, trainer)
    assert line.startswith("train source 'shades', epoch 0: 1 of ")
    assert " rows were skipped (missing 1), expected at most max_skip_rate=0 of them; the first: shades/16: " in line
    assert "gone.jpg" in line
    assert line.endswith("repair what python -m macaw_lit.doctor shows, or raise data.max_skip_rate")
    assert "\n" not in line
    ledger = written(tmp_path)
    assert ledger["skipped"] == {"missing": 1}
    assert ledger["used"] == 2 * trainer.global_step, "of the batch that brought it, and of those before"


def test_it_stops_within_an_epoch_as_soon_as_it_is_certain(sizes, make_data, make_trainer, tmp_path, paths):
    data = make_data([paths[0], paths[1], Path(), Path()] * 30)
    line = stopped(sizes, data, make_trainer(Ledger(max_skip_rate=0.1), max_epochs=1))
    ledger = written(tmp_path)
    assert ledger["used"] % (2 * CHECK_EVERY) == 0
    assert ledger["used"] < 100
    assert line.startswith(f"train source 'shades', epoch 0: {ledger['skipped']['missing']} of {ledger['seen']} rows")


def test_a_small_source_is_judged_at_the_end_of_an_epoch(sizes, make_data, make_trainer, tmp_path, paths):
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    line = stopped(sizes, make_data(paths), make_trainer(Ledger(max_skip_rate=0.2), saves, max_epochs=2))
    assert line.startswith("train source 'shades', epoch 0: 3 of 11 rows were skipped (")
    assert (tmp_path / "epoch=0.ckpt").exists(), "nothing is lost"
    assert written(tmp_path)["epochs"].keys() == {"0"}
    assert stopped(sizes, make_data(paths), make_trainer(Ledger(max_skip_rate=3 / 11), max_epochs=2)) == ""


def test_with_the_last_epoch_the_model_is_saved_first(sizes, make_data, make_trainer, tmp_path, paths):
    ledger = Ledger(max_skip_rate=0.2)
    assert stopped(sizes, make_data(paths), make_trainer(ledger, max_epochs=1)) == ""
    with pytest.raises(DataError, match="the model is saved, but train source 'shades', epoch 0: 3 of 11 rows"):
        ledger.settle()
    ledger = Ledger(max_skip_rate=0.2)
    assert stopped(sizes, make_data(paths), make_trainer(ledger, max_steps=2)) == ""
    ledger.settle()  # an epoch that was broken off tells nothing


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ConfigError, match="expected a share of rows from 0 to 1"):
        Ledger(max_skip_rate=rate)


class Metrics(DummyLogger):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = defaultdict(dict)

    def log_metrics(self, metrics, step=None) -> None:
        self.steps[step] |= metrics


def train_tiny(sizes, model, make_batch, make_trainer, *callbacks, steps=5) -> dict[int, dict[str, float]]:
    torch.manual_seed(3)
    metrics, batch = Metrics(), make_batch(model, [(1, {"image": 2}), (2, {"audio": 1}), (3, {})])
    trainer = make_trainer(*callbacks, max_steps=steps, log_every_n_steps=1, logger=metrics)
    trainer.fit(module_of(sizes), DataLoader([batch] * steps, batch_size=None))
    return metrics.steps


def test_health_is_logged_at_its_interval_and_changes_nothing(sizes, model, make_batch, make_trainer):
    plain = train_tiny(sizes, model, make_batch, make_trainer)
    steps = train_tiny(sizes, model, make_batch, make_trainer, AlignmentHealth(every_n_steps=2))
    assert [step["train/loss"] for step in steps.values()] == [step["train/loss"] for step in plain.values()]
    read = {step: {name for name in logged if name.startswith("health/")} for step, logged in steps.items()}
    shares = {"aligner_gradient", "encoder_gradient"}
    figures = {
        *(f"health/image/{name}" for name in {"entropy", "cosine", "norm_ratio"} | shares),
        *(f"health/audio/{name}" for name in {"entropy", "norm_ratio"} | shares),  # one sound differs from no other
    }
    assert read == {0: figures, 1: set(), 2: figures, 3: set(), 4: figures}
    assert 0 < steps[0]["health/image/aligner_gradient"] < 1
    assert steps[0]["health/image/cosine"] != steps[2]["health/image/cosine"]


def test_rows_without_media_leave_no_empty_row(sizes, model, make_batch, make_trainer, tmp_path):
    trainer = make_trainer(AlignmentHealth(every_n_steps=1), max_steps=2, logger=MetricsFile(str(tmp_path)))
    trainer.fit(module_of(sizes), DataLoader([make_batch(model, [(1, {})])] * 2, batch_size=None))
    assert not (tmp_path / "metrics.csv").exists()


def test_inputs_that_look_all_alike_are_warned_of_once(sizes, model, make_batch, make_trainer, recwarn):
    sizes["aligner"] = {"_target_": "macaw_lit.aligners.macaw.MacawAligner"}
    sizes["llm"]["embedding_std"] = 1e-4
    train_tiny(sizes, model, make_batch, make_trainer, AlignmentHealth(every_n_steps=1))
    said = [str(warning.message) for warning in recwarn if "cosine" in str(warning.message)]
    assert len(said) == 1
    assert said[0].startswith("soft tokens of different image inputs have a cosine of")


@pytest.mark.parametrize("interval", [0, -5])
def test_an_interval_that_never_comes_is_refused(interval):
    with pytest.raises(ConfigError, match=f"every_n_steps={interval}; expected at least 1"):
        AlignmentHealth(interval)
