"""The ledger of training: seen = used + skipped, by cause, through a checkpoint and back."""

import json
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from macaw_lit.training.callbacks import Ledger
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
