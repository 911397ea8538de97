"""What is watched while training: the ledger through a checkpoint and back, and the health of the alignment."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from macaw_lit.errors import ConfigError
from macaw_lit.training.callbacks import AlignmentHealth, Ledger, PrintWeights
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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_sample_is_accounted_for(sizes, make_data, make_trainer, tmp_path, paths, num_workers):
    ledger = Ledger()
    make_trainer(ledger, max_epochs=2).fit(module_of(sizes), make_data(paths, num_workers=num_workers))
    written = json.loads((tmp_path / "ledger.json").read_text())
    assert written == ledger.state_dict()
    assert written["used"] == 16, "each unusable row has a stand-in"
    assert written["skipped"] == {"missing": 2, "empty": 2, "unreadable": 2}
    assert written["seen"] == written["used"] + sum(written["skipped"].values())
    assert written["truncated"] == 0


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


def test_rows_that_were_cut_are_counted(sizes, model, make_batch, make_trainer, tmp_path):
    batch = make_batch(model, [(1, {}), (2, {})])
    batch.truncated = 1
    make_trainer(Ledger(), max_steps=3).fit(module_of(sizes), DataLoader([batch] * 3, batch_size=None))
    assert json.loads((tmp_path / "ledger.json").read_text()) == {"seen": 6, "used": 6, "truncated": 3, "skipped": {}}


def test_a_resumed_run_goes_on_counting(sizes, make_data, make_trainer, tmp_path, paths):
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    whole = Ledger()
    make_trainer(whole, saves, max_steps=7).fit(module_of(sizes), make_data(paths))
    resumed = Ledger()
    trainer = make_trainer(resumed, max_steps=7, folder=tmp_path / "resumed")
    trainer.fit(module_of(sizes), make_data(paths), ckpt_path=tmp_path / "step=3.ckpt")
    assert resumed.state_dict() == whole.state_dict()
    assert whole.used == 14
    assert whole.skipped.total() > 0
    assert json.loads((tmp_path / "resumed" / "ledger.json").read_text()) == whole.state_dict()


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
