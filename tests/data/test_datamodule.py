"""Sources to batches under a real Trainer: accounts, replacement of bad media, workers, exact resume."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from macaw_lit.data.datamodule import MacawDataModule, Source
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.types import Batch, MediaRef, Rejection, Sample, Turn

Row = Sample | Rejection


def read(name: str, paths: list[Path | None]) -> Iterator[Row]:
    """One sample per path; None makes a rejected row."""
    for number, path in enumerate(paths):
        if path is None:
            yield Rejection("missing_key", f"{name}.json[{number}]", "no 'response'")
            continue
        media = () if path == Path() else (MediaRef("image", path),)
        turns = (Turn("user", f"Question {number}?", media), Turn("assistant", f"Answer {number}."))
        yield Sample(turns, f"{name}/{number}", name)


def source(name: str, paths: list[Path | None], count: int | None = None) -> Source:
    return Source(partial(read, name, paths), count)


TEXT = Path()


class Recorder(LightningModule):
    """Counts what it is fed; its one weight is never trained in earnest."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.uids: list[str] = []
        self.held: list[str] = []
        self.skipped: list[Rejection] = []
        self.ids: list[list[int]] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        assert isinstance(batch, Batch)
        self.uids += batch.uids
        self.skipped += batch.skipped
        self.ids += batch.input_ids.tolist()
        return self.weight * 0

    def validation_step(self, batch: Batch, index: int) -> None:
        self.held += batch.uids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, *callbacks: Any, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        enable_checkpointing=bool(callbacks),
        **quiet | settings,
    )


@pytest.fixture
def make_module(tokenizer, specs) -> Callable[..., MacawDataModule]:
    def make(train: dict[str, Source], heldout: dict[str, Source] | None = None, **settings: Any) -> MacawDataModule:
        settings = {"batch_size": 2, "max_skip_rate": 1.0} | settings
        module = MacawDataModule(train, heldout, partial(Preprocessor, max_length=200), **settings)
        module.attach(tokenizer, specs)
        return module

    return make


def test_an_epoch_shows_every_row_once_and_the_table_says_where_they_came_from(make_module, tmp_path, picture):
    module = make_module(
        {"pictures": source("pictures", [picture(9), None, picture(99)]), "texts": source("texts", [TEXT] * 5)},
        {"texts": source("held", [TEXT] * 3)},
    )
    recorder = Recorder()
    trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(recorder, datamodule=module)
    assert sorted(recorder.uids) == ["pictures/0", "pictures/2", *(f"texts/{number}" for number in range(5))]
    assert recorder.held == ["held/0", "held/1", "held/2"]
    assert module.table() == [
        ("train", "pictures", 2, 1, "missing_key 1"),
        ("train", "texts", 5, 0, ""),
        ("heldout", "texts", 3, 0, ""),
    ]


def test_shares_and_a_fixed_choice_of_held_out_rows(make_module, tmp_path):
    texts = {"many": source("many", [TEXT] * 20, 6), "few": source("few", [TEXT] * 2, 6)}
    module = make_module(texts, {"held": source("held", [TEXT] * 9, 4)})
    recorder = Recorder()
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(recorder, datamodule=module)
    assert Counter(uid.split("/")[0] for uid in recorder.uids) == {"many": 12, "few": 4}
    assert len({uid for uid in recorder.uids if uid.startswith("many")}) == 12
    assert recorder.held[:4] == recorder.held[4:]
    assert recorder.held[:4] == sorted(set(recorder.held))


def test_weights_share_out_an_epoch_and_small_sources_are_used_whole(make_module, tmp_path):
    def drawn(repeat: bool) -> Counter[str]:
        texts = {
            "few": Source(partial(read, "few", [TEXT] * 3), weight=1),
            "many": Source(partial(read, "many", [TEXT] * 30), weight=2),
        }
        recorder = Recorder()
        module = make_module(texts, rows_per_epoch=24, repeat=repeat)
        trainer(tmp_path, max_epochs=1).fit(recorder, datamodule=module)
        return Counter(uid.split("/")[0] for uid in recorder.uids)

    assert drawn(repeat=False) == {"few": 3, "many": 16}, "whole, and no more"
    assert drawn(repeat=True) == {"few": 6, "many": 16}, "its share of 8 holds two whole passes"
    with pytest.raises(ConfigError, match="held-out source 'held' has a weight"):
        make_module({"texts": source("texts", [TEXT])}, {"held": Source(partial(read, "held", [TEXT]), weight=1)})


def test_the_state_is_a_few_integers(make_module, tmp_path):
    sources = {f"source number {number}": source("texts", [TEXT] * 7, 3) for number in range(20)}
    module = make_module(sources, batch_size=8)
    trainer(tmp_path, max_steps=2).fit(Recorder(), datamodule=module)
    state = module.state_dict()
    assert state.pop("mixture") == {"seed": 0} | {f"source {name}": [7, 3, 1] for name in sources}
    assert state == {"epoch": 0, "position": 16}
    assert len(json.dumps(module.state_dict())) <= 1024


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_source_of_which_too_many_rows_are_rejected_does_not_start(make_module, split):
    sources = {"train": {"good": source("good", [TEXT])}, "heldout": {"held": source("held", [TEXT])}}
    sources[split]["mine"] = source("rows", [*[TEXT] * 97, None, None, None])
    make_module(*sources.values(), max_skip_rate=0.03).setup("fit")
    with pytest.raises(DataError) as error:
        make_module(*sources.values(), max_skip_rate=0.02).setup("fit")
    said = str(error.value)
    assert said.startswith(
        f"{split} source 'mine': 3 of 100 rows were rejected (missing_key 3), expected at most max_skip"
    )
    assert "rows.json[97]: no 'response'" in said
    assert said.endswith("repair what python -m macaw_lit.doctor shows, or raise data.max_skip_rate")
    assert "\n" not in said


def test_strict_reading_stops_at_one_row(make_module):
    with pytest.raises(DataError, match="1 of 1000 rows were rejected"):
        make_module({"mine": source("rows", [*[TEXT] * 999, None])}, max_skip_rate=0.0).setup("fit")
    with pytest.raises(ConfigError, match=r"max_skip_rate=2; expected a share of rows from 0 to 1"):
        make_module({"mine": source("rows", [TEXT])}, max_skip_rate=2)


def test_joined_rows_count_as_these(make_module):
    def joined() -> Iterator[Row]:
        for number in range(25):
            turns = (Turn("user", "What?"), Turn("assistant", "That."))
            yield Sample(turns, f"joined/{number}", "joined", {"rows": [f"{number}.{part}" for part in range(4)]})
        yield Rejection("missing_key", "joined.json[100]", "no 'response'")

    module = make_module({"joined": Source(joined)}, max_skip_rate=0.01)  # 1 of 101, not 1 of 26
    module.setup("fit")
    assert module.table() == [("train", "joined", 100, 1, "missing_key 1")]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_media_are_replaced_by_the_next_of_their_source_and_counted(make_module, tmp_path, picture, workers: int):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    paths = [picture(10), empty, tmp_path / "gone.jpg", picture(20), empty]
    module = make_module(
        {"texts": source("texts", [TEXT] * 4), "pictures": source("pictures", paths)}, num_workers=workers
    )
    recorder = Recorder()
    trainer(tmp_path, max_epochs=1).fit(recorder, datamodule=module)
    used, skipped = Counter(recorder.uids), Counter((row.cause, row.locator) for row in recorder.skipped)
    assert used == {"pictures/3": 3, "pictures/0": 2, **{f"texts/{number}": 1 for number in range(4)}}
    assert skipped == {("empty", "pictures/1"): 1, ("missing", "pictures/2"): 2, ("empty", "pictures/4"): 1}
    assert all("pictures" not in row.detail or row.detail for row in recorder.skipped)


def test_no_usable_row_names_the_source_and_the_causes(make_module):
    with pytest.raises(DataError, match=r"'pictures'.*missing_key 2, first at rows.json\[0\]"):
        make_module({"pictures": source("rows", [None, None])}).setup("fit")
    with pytest.raises(DataError, match=r"heldout source 'texts'.*empty"):
        make_module({"rows": source("rows", [TEXT])}, {"texts": source("texts", [])}).setup("validate")


def test_a_loader_without_a_tokenizer_says_what_to_call():
    module = MacawDataModule({"rows": source("rows", [TEXT])})
    module.setup("fit")
    with pytest.raises(ConfigError, match="attach"):
        module.train_dataloader()


def test_order_and_content_do_not_depend_on_workers(make_module, tmp_path, picture):
    fed = []
    for workers in (0, 1, 2):
        module = make_module(
            {"pictures": source("pictures", [picture(9), picture(99)]), "texts": source("texts", [TEXT] * 7)},
            num_workers=workers,
        )
        recorder = Recorder()
        trainer(tmp_path, max_epochs=2).fit(recorder, datamodule=module)
        fed.append((recorder.uids, recorder.ids))
    assert fed[0] == fed[1] == fed[2]


def fit(make: Callable[..., MacawDataModule], folder: Path, *callbacks: Any, ckpt: Any = None, **settings: Any) -> Any:
    """Seven rows, four batches of two an epoch: uids fed, and the trainer."""
    module = make({"texts": source("texts", [TEXT] * 7)}, num_workers=settings.pop("workers", 0))
    recorder = Recorder()
    run = trainer(folder, *callbacks, **settings)
    run.fit(recorder, datamodule=module, ckpt_path=ckpt)
    return recorder.uids, run


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_after_a_stop_goes_on_at_the_exact_sample(make_module, tmp_path, workers: int):
    whole, _ = fit(make_module, tmp_path, max_steps=10, max_epochs=-1)
    assert len(whole) == 18
    for stop in (1, 4, 5, 8) if workers == 0 else (5,):
        path = tmp_path / f"stop{stop}.ckpt"
        first, run = fit(make_module, tmp_path, max_steps=stop, max_epochs=-1, workers=workers)
        run.save_checkpoint(path)
        second, _ = fit(make_module, tmp_path, ckpt=path, max_steps=10, max_epochs=-1, workers=workers)
        assert first + second == whole, stop


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_from_every_checkpoint_written_on_the_way(make_module, tmp_path, accumulate: int):
    steps = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, save_on_train_epoch_end=False)
    settings = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    whole, _ = fit(make_module, tmp_path, steps, **settings)
    assert len(whole) == 21
    ends = list(itertools.accumulate([2, 2, 2, 1] * 3))[accumulate - 1 :: accumulate]
    for step, end in enumerate(ends, 1):
        rest, run = fit(make_module, tmp_path, ckpt=tmp_path / f"step={step}.ckpt", **settings)
        assert rest == whole[end:], step
        assert run.current_epoch == 3
        assert run.global_step == len(ends)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_from_the_end_of_an_epoch(make_module, tmp_path, workers: int):
    ends = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    whole, _ = fit(make_module, tmp_path, ends, max_epochs=3)
    for epoch in (0, 1):
        rest, _ = fit(make_module, tmp_path, ckpt=tmp_path / f"epoch={epoch}.ckpt", max_epochs=3, workers=workers)
        assert rest == whole[7 * (epoch + 1) :], epoch


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_resume_from_the_last_checkpoint_of_a_run_with_a_step_limit(make_module, tmp_path, stop: int):
    last = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1, save_on_train_epoch_end=True)
    whole, _ = fit(make_module, tmp_path, max_steps=10, max_epochs=-1)
    first, _ = fit(make_module, tmp_path, last, max_steps=stop, max_epochs=-1)
    rest, _ = fit(make_module, tmp_path, ckpt=tmp_path / "last.ckpt", max_steps=10, max_epochs=-1)
    assert first + rest == whole


def test_resume_after_a_crash_within_a_step_repeats_that_step(make_module, tmp_path):
    class Fragile(Recorder):
        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            if len(self.uids) == 9:
                raise KeyError("power cut")
            return super().training_step(batch, index)

    save = ModelCheckpoint(tmp_path, "{step}", save_on_exception=True)
    whole, _ = fit(make_module, tmp_path, max_epochs=3)
    recorder = Fragile()
    with pytest.raises(KeyError):
        trainer(tmp_path, save, max_epochs=3).fit(recorder, make_module({"texts": source("texts", [TEXT] * 7)}))
    rest, _ = fit(make_module, tmp_path, ckpt=tmp_path / "step=5.ckpt", max_epochs=3)
    assert recorder.uids == whole[:9]
    assert rest == whole[9:]


def test_resume_from_checkpoints_written_after_validation(make_module, tmp_path):
    def run(*callbacks: Any, ckpt: Path | None = None) -> Recorder:
        module = make_module({"texts": source("texts", [TEXT] * 7)}, {"held": source("held", [TEXT] * 3)})
        recorder = Recorder()
        trainer(tmp_path, *callbacks, max_epochs=2, val_check_interval=2).fit(recorder, module, ckpt_path=ckpt)
        return recorder

    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=False)
    whole = run(save).uids
    for step, end in ((2, 4), (4, 7), (6, 11)):
        assert run(ckpt=tmp_path / f"step={step}.ckpt").uids == whole[end:], step


def test_resume_when_epochs_are_limited(make_module, tmp_path):
    ends = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    whole, _ = fit(make_module, tmp_path, ends, max_epochs=3, limit_train_batches=2)
    rest, _ = fit(make_module, tmp_path, ckpt=tmp_path / "epoch=0.ckpt", max_epochs=3, limit_train_batches=2)
    assert len(whole) == 12
    assert rest == whole[4:]


def test_resume_several_times(make_module, tmp_path):
    whole, _ = fit(make_module, tmp_path, max_steps=12, max_epochs=-1)
    fed: list[str] = []
    path = None
    for stop in (1, 3, 8, 9, 12):
        part, run = fit(make_module, tmp_path, ckpt=path, max_steps=stop, max_epochs=-1)
        fed += part
        path = tmp_path / f"part{stop}.ckpt"
        run.save_checkpoint(path)
    assert fed == whole


def test_resume_with_other_data_is_refused(make_module, tmp_path):
    _, run = fit(make_module, tmp_path, max_steps=1, max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = make_module({"texts": source("texts", [TEXT] * 8)})
    with pytest.raises(ConfigError, match="source texts was 7 rows, 7 an epoch, 1 times, now is 8 rows, 8 an epoch"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), datamodule=other, ckpt_path=tmp_path / "a.ckpt")
    renamed = make_module({"other": source("texts", [TEXT] * 7)})
    with pytest.raises(ConfigError, match="source texts was 7 rows, 7 an epoch, 1 times, now is absent; restore it"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), datamodule=renamed, ckpt_path=tmp_path / "a.ckpt")


def test_overfitting_and_limiting_batches_work(make_module, tmp_path):
    uids, _ = fit(make_module, tmp_path, max_epochs=2, overfit_batches=2)
    assert uids == ["texts/0", "texts/1", "texts/2", "texts/3"] * 2
    uids, _ = fit(make_module, tmp_path, max_epochs=1, limit_train_batches=2)
    assert len(uids) == 4
    uids, _ = fit(make_module, tmp_path, fast_dev_run=True)
    assert len(uids) == 2


def test_training_rows_are_packed_up_to_max_length_and_held_out_ones_never(make_module, picture):
    rows = [picture(9), TEXT, picture(99), TEXT]
    module, plain = (
        make_module({"all": source("all", rows)}, {"held": source("held", rows)}, batch_size=4, pack_rows=packed)
        for packed in (True, False)
    )
    for each in (module, plain):
        each.setup("fit")
        each.preprocess.max_length = 260  # two texts, or a text and a picture
    (batch,), (padded,) = module.train_dataloader(), plain.train_dataloader()
    assert batch.uids == padded.uids
    assert batch.input_ids.shape[1] <= 260
    assert batch.input_ids.numel() < padded.input_ids.numel()
    assert batch.response_tokens == padded.response_tokens
    (held,) = module.val_dataloader()
    assert held.position_ids is None
    assert len(held.input_ids) == 4


def test_ranks_share_the_epoch_without_overlap(make_module, tmp_path, monkeypatch):
    def uids(rank: int) -> list[str]:
        module = make_module({"texts": source("texts", [TEXT] * 7)}, {"held": source("held", [TEXT] * 5)})
        module.trainer = trainer(tmp_path)
        monkeypatch.setattr(Trainer, "world_size", 2)
        monkeypatch.setattr(Trainer, "global_rank", rank)
        module.setup("fit")
        loaders = (module.train_dataloader(), module.val_dataloader())
        return [uid for loader in loaders for batch in loader for uid in batch.uids]

    first, second = uids(0), uids(1)
    assert len(first) == len(second) == 3 + 2
    assert not set(first) & set(second)


def test_more_processes_than_rows_are_refused(make_module, tmp_path, monkeypatch):
    """Training on nothing would end well, and leave a model."""
    module = make_module({"texts": source("texts", [TEXT] * 3)})
    module.trainer = trainer(tmp_path)
    monkeypatch.setattr(Trainer, "world_size", 4)
    monkeypatch.setattr(Trainer, "global_rank", 0)
    module.setup("fit")
    with pytest.raises(ConfigError, match=r"num_nodes=4 processes for 3 rows in all"):
        module.train_dataloader()
    monkeypatch.setattr(Trainer, "world_size", 3)
    assert len(module.train_dataloader()) == 1


def test_validating_a_checkpoint_does_not_move_the_next_training(make_module, tmp_path):
    whole, run = fit(make_module, tmp_path, max_steps=3)
    run.save_checkpoint(tmp_path / "a.ckpt")
    module = make_module({"texts": source("texts", [TEXT] * 7)}, {"held": source("held", [TEXT] * 3)})
    recorder = Recorder()
    trainer(tmp_path).validate(recorder, module, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(recorder, module)
    assert recorder.uids == whole
