"""Training under a real Trainer: it learns, it resumes to the bit, and two processes do what one does."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset

from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.training import module as training
from macaw_lit.training.module import MacawModule
from macaw_lit.training.optim import MuonAdamW, adamw
from macaw_lit.types import IGNORE, Batch

MIXED = [(1, {"image": 1}), (2, {}), (3, {"image": 1, "video": 1, "audio": 1}), (4, {"audio": 2})]
muon = partial(MuonAdamW, lr=0.01, adamw_lr=0.01, weight_decay=0.01)


@pytest.fixture
def make_module(sizes: dict[str, Any]) -> Callable[..., MacawModule]:
    return partial(MacawModule, sizes, muon, warmup_ratio=0.1)


def repeated(batch: Batch, times: int = 1) -> DataLoader[Batch]:
    return DataLoader([batch] * times, batch_size=None)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_one_batch_is_learned_by_heart(model, make_module, make_batch, make_trainer):
    batch, module = make_batch(model, MIXED), make_module()
    trainer = make_trainer(max_steps=60)
    module.configure_model()
    with torch.no_grad():
        output = module.model(batch)
        start = (output.nll / output.tokens).item()
    trainer.fit(module, repeated(batch, 60))
    assert start > 4, "a random model knows nothing: log 309 is 5.7"
    assert float(trainer.callback_metrics["train/loss"]) < 0.1 * start
    output = module.model.eval()(batch)
    assert (output.nll / output.tokens).item() < 0.1 * start


def test_the_loss_is_the_mean_over_response_tokens(model, make_module, make_batch, make_trainer):
    batch, module = make_batch(model, MIXED), make_module()
    trainer = make_trainer(max_steps=1, num_sanity_val_steps=0)
    module.configure_model()
    logits = module.model.llm(module.model.embed(batch), batch.attention_mask).logits.detach()
    targets = batch.labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    trainer.validate(module, repeated(batch), verbose=False)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-5)  # float32 sums
    trainer.fit(module, repeated(batch))
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_without_a_response_is_harmless(model, make_module, make_batch, make_trainer):
    batch, module = make_batch(model, MIXED), make_module()
    batch.labels[:] = IGNORE
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, repeated(batch))
    assert float(trainer.callback_metrics["train/loss"]) == 0.0
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_the_same_seed_gives_the_same_weights_to_the_bit(make_module, make_data, make_trainer, picture):
    paths = [picture(level) for level in (10, 90, 170, 250)] + [Path()] * 4
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        module = make_module()
        trainer = make_trainer(max_steps=5)
        trainer.fit(module, make_data(paths, num_workers=0))
        runs.append((trainer.callback_metrics["train/loss"], module.state_dict()))
    assert runs[0][0].item() == runs[1][0].item() != runs[2][0].item()
    assert same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("optimizer", [muon, partial(adamw, lr=0.01, weight_decay=0.01)])
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(
    sizes, make_data, make_trainer, picture, tmp_path, optimizer
):
    paths = [picture(level) for level in (10, 90, 170, 250)] + [Path()] * 4
    module = MacawModule(sizes, optimizer, warmup_ratio=0.3)
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    make_trainer(saves, max_steps=7).fit(module, make_data(paths))  # 4 batches an epoch: step 3 lies within the first
    for step in (3, 6):
        torch.manual_seed(100 + step)
        resumed = MacawModule(sizes, optimizer, warmup_ratio=0.3)
        trainer = make_trainer(max_steps=7)
        trainer.fit(resumed, make_data(paths), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert trainer.global_step == 7
        assert same(resumed.state_dict(), module.state_dict()), f"resumed at step {step}"


@pytest.mark.parametrize("kind", [partial(MuonAdamW, adamw_lr=0.02), partial(adamw, betas=(0.8, 0.9))])
def test_a_resumed_run_has_the_rates_that_it_is_given(sizes, make_data, make_trainer, picture, tmp_path, kind):
    class Noting(MacawModule):
        def on_train_batch_start(self, *_: object) -> None:
            noted.append([(group["lr"], group["weight_decay"]) for group in self.trainer.optimizers[0].param_groups])

    paths = [picture(level) for level in (10, 90, 170, 250)] + [Path()] * 4
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    noted: list[list[tuple[float, float]]] = []
    seen = []
    for optimizer, ckpt_path in (
        (partial(kind, lr=0.02, weight_decay=0.01), None),
        (partial(kind, lr=0.002, weight_decay=0.5), None),
        (partial(kind, lr=0.002, weight_decay=0.5), tmp_path / "step=3.ckpt"),
    ):
        noted.clear()
        module = Noting(sizes, optimizer, warmup_ratio=0.3)
        callbacks = [] if seen else [saves]
        make_trainer(*callbacks, max_steps=7).fit(module, make_data(paths), ckpt_path=ckpt_path)
        seen.append([*noted])
    assert seen[2] == seen[1][3:] != seen[0][3:], "the schedule's place is the checkpoint's, the rest is said anew"


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_go_with_their_step_and_nothing_else_changes(sizes, make_data, make_trainer, picture, batches):
    """By the next forward pass they are gone, but for those that are accumulated."""
    held: list[bool] = []

    class Watching(MacawModule):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            held.append(any(parameter.grad is not None for parameter in self.parameters()))
            return super().training_step(batch, batch_idx)

    class AsLightning(Watching):
        optimizer_step = LightningModule.optimizer_step

    weights = []
    for kind in (Watching, AsLightning):
        torch.manual_seed(0)
        module = kind(sizes, muon, warmup_ratio=0.1)
        paths = [picture(level) for level in (10, 90, 170, 250)] + [Path()] * 4
        settings = {"max_epochs": 2, "accumulate_grad_batches": batches, "gradient_clip_val": 0.5}
        make_trainer(**settings).fit(module, make_data(paths, num_workers=0))
        weights.append(module.state_dict())
    assert held[:8] == [False, batches == 2] * 4
    assert held[8:12] == [False, True, True, True], "Lightning drops them after the forward pass"
    assert same(*weights)


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_values(make_module, make_data, make_trainer, tmp_path):
    saves = ModelCheckpoint(tmp_path, "last", save_last=False)
    make_trainer(saves, max_steps=1).fit(make_module(), make_data([Path()] * 2))
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "MacawDataModule"} <= content.keys()


def test_all_that_is_trained_moves_and_the_fixed_sinusoids_do_not(model, make_module, make_batch, make_trainer):
    module = make_module()
    module.configure_model()
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    make_trainer(max_steps=3).fit(module, repeated(make_batch(model, MIXED), 3))
    still = {name for name, tensor in module.model.state_dict().items() if torch.equal(tensor, before[name])}
    assert still == {"encoders.hearing.encoder.positional_embedding"}


def test_the_model_is_built_once_with_its_pretrained_parts(sizes, model, tmp_path):
    state = model.encoders["vision"].visual.state_dict()
    save_file({f"visual.{name}": tensor for name, tensor in state.items()}, tmp_path / "clip.safetensors")
    torch.manual_seed(5)
    module = MacawModule(sizes, muon, pretrained={"vision": str(tmp_path / "clip.safetensors"), "llm": None})
    with pytest.raises(AssertionError, match="configure_model"):
        _ = module.model
    module.configure_model()
    built = module.model
    module.configure_model()
    assert module.model is built
    assert same(built.encoders["vision"].visual.state_dict(), state)
    assert not same(built.encoders["hearing"].state_dict(), model.encoders["hearing"].state_dict())


def test_pretrained_weights_that_are_not_there_stop_the_run(sizes, model, make_batch, make_trainer, tmp_path):
    for pretrained, error in (({"vision": str(tmp_path / "none.pt")}, WeightsError), ({"sight": None}, ConfigError)):
        module = MacawModule(sizes, muon, pretrained=pretrained)
        with pytest.raises(error):
            make_trainer(max_steps=1).fit(module, repeated(make_batch(model, MIXED)))


@pytest.mark.parametrize("loss_mean", ["tokens", "microbatches"])
def test_the_update_of_accumulated_batches_is_the_formula(sizes, make_data, make_trainer, loss_mean):
    """One step of SGD over three batches of two rows, against the gradient written out."""
    gained = MacawModule(sizes, lambda model: torch.optim.SGD(model.parameters(), lr=1.0), loss_mean=loss_mean)
    gained.configure_model()
    reference = copy.deepcopy(gained.model)
    make_trainer(max_steps=1, accumulate_grad_batches=3).fit(gained, make_data([Path()] * 6))
    data = make_data([Path()] * 6)  # of the first epoch again
    data.setup("fit")
    outputs = [reference(batch) for batch in data.train_dataloader()]
    if loss_mean == "tokens":
        loss = sum(output.nll for output in outputs) / sum(output.tokens for output in outputs)
    else:
        loss = sum(output.nll / output.tokens for output in outputs) / 3
    loss.backward()
    for (name, own), wanted in zip(gained.model.named_parameters(), reference.parameters(), strict=True):
        # float32 sums in another order
        torch.testing.assert_close(own, wanted - wanted.grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("loss_mean", ["tokens", "microbatches"])
def test_packed_and_padded_rows_give_the_same_update_however_they_are_dealt_out(
    sizes, make_data, make_trainer, picture, loss_mean
):
    """Steps of SGD over 12 rows in one batch and in three, in float64 but for the loss itself, which is float32."""
    paths = [picture(level) for level in (10, 90, 170, 250)] + [Path()] * 8
    updates = {}
    for batch_size, accumulate, pack_rows in ((12, 1, False), (12, 1, True), (4, 3, False), (4, 3, True)):
        torch.manual_seed(0)
        module = MacawModule(sizes, lambda model: torch.optim.SGD(model.parameters(), lr=0.1), loss_mean=loss_mean)
        module.configure_model()
        module.model.double()
        before = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
        data = make_data(paths, batch_size=batch_size, pack_rows=pack_rows)
        make_trainer(max_steps=2, accumulate_grad_batches=accumulate).fit(module, data)
        after = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
        updates[accumulate, pack_rows] = after - before
        packed = [len(batch.input_ids) < len(batch.uids) for batch in data.train_dataloader()]
        assert any(packed) == pack_rows, "else nothing is compared"

    def distance(first: tuple[int, bool], second: tuple[int, bool]) -> float:
        return float((updates[first] - updates[second]).norm() / updates[second].norm())

    assert distance((1, True), (1, False)) < 1e-6
    assert distance((3, True), (3, False)) < 1e-6
    if loss_mean == "tokens":
        assert distance((3, True), (1, False)) < 1e-6
    else:
        assert distance((3, True), (1, False)) > 1e-3, "the original's mean depends on what shares a batch"


def test_what_is_accumulated_must_know_its_step(model, make_module, make_batch, make_trainer):
    batches = repeated(make_batch(model, MIXED), 2)
    with pytest.raises(ConfigError, match="accumulate_grad_batches=2 with batches that do not say"):
        make_trainer(max_steps=1, accumulate_grad_batches=2).fit(make_module(), batches)
    with pytest.raises(ConfigError, match="loss_mean=rows: expected tokens or microbatches"):
        make_module(loss_mean="rows")


def test_processes_with_unequal_numbers_of_batches_do_not_begin(
    model, make_module, make_batch, make_trainer, monkeypatch
):
    monkeypatch.setattr(training, "from_all_processes", lambda count: [count, count - 1])
    with pytest.raises(ConfigError, match="processes with 3, 2 batches to train on would wait for each other"):
        make_trainer(max_epochs=1).fit(make_module(), repeated(make_batch(model, MIXED), 3))


def test_a_schedule_needs_an_end(model, make_module, make_batch, make_trainer):
    class Endless(IterableDataset[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            yield from repeated(make_batch(model, MIXED), 9)

    endless = DataLoader(Endless(), batch_size=None)
    for loader, epochs in ((repeated(make_batch(model, MIXED)), -1), (endless, 1)):
        with pytest.raises(ConfigError, match=f"max_epochs={epochs} and max_steps=-1 tell no number.*give max_steps"):
            make_trainer(max_epochs=epochs).fit(make_module(), loader)
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_module(), endless)
    assert trainer.global_step == 2


@pytest.mark.parametrize("pack_rows", [False, True])
def test_a_run_of_epochs_goes_on_at_its_sample(make_module, make_data, make_trainer, tmp_path, pack_rows):
    """With `max_epochs` Lightning makes the loader before it reads the checkpoint, to count the steps."""
    module, saves = make_module(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    settings = {"max_epochs": 2, "accumulate_grad_batches": 3}
    make_trainer(saves, **settings).fit(module, make_data([Path()] * 14, pack_rows=pack_rows))
    resumed = make_module()
    make_trainer(**settings).fit(
        resumed, make_data([Path()] * 14, pack_rows=pack_rows), ckpt_path=tmp_path / "step=3.ckpt"
    )
    assert same(resumed.state_dict(), module.state_dict())
