"""Speed by a clock that the test turns, and FLOPs against those that torch counts."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from macaw_lit.errors import ConfigError
from macaw_lit.training import throughput
from macaw_lit.training.module import MacawModule
from macaw_lit.training.optim import adamw
from macaw_lit.training.throughput import Throughput, flops_per_position

FETCH, STEP, VALIDATION = 3.0, 1.0, 100.0  # seconds


class Clock(Callback):
    """Stands for `time` in the module under test: only what is done below takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def on_train_batch_start(self, *_) -> None:
        self.now += STEP

    def on_validation_batch_start(self, *_) -> None:
        self.now += VALIDATION


class Slow(Dataset):
    """Each batch takes a while to come."""

    def __init__(self, batch, length: int, clock: Clock) -> None:
        self.batch, self.length, self.clock = batch, length, clock

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        self.clock.now += FETCH
        return self.batch


def module_of(sizes) -> MacawModule:
    return MacawModule(sizes, lambda model: adamw(model, lr=0.01, weight_decay=0.0))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


@pytest.mark.parametrize(("accumulate", "row_length"), [(1, None), (2, None), (1, 40)])
def test_speed_over_the_steps_since_the_last_time(
    sizes, model, make_batch, make_trainer, logged, clock, accumulate, row_length
):
    rows = [(1, {"image": 2}), (2, {"audio": 1}), (3, {})]
    batch = make_batch(model, rows, row_length=row_length)
    assert len(batch.input_ids) == (3 if row_length is None else 2), "samples are counted, not rows"
    module = module_of(sizes)
    module.loss_mean = "microbatches"
    trainer = make_trainer(
        clock, Throughput(), max_epochs=2, log_every_n_steps=2, logger=logged, accumulate_grad_batches=accumulate
    )
    profiler = trainer.profiler
    trainer.fit(
        module,
        DataLoader(Slow(batch, 4 * accumulate, clock), batch_size=None),
        DataLoader(Slow(batch, 1, clock), batch_size=None),
    )
    speed = logged.under("speed/")
    assert sorted(speed) == [1, 3, 5, 7], "steps count from 0, as for train/loss"
    real = sum(int(make_batch(model, [row]).attention_mask.sum()) for row in rows)
    assert real < batch.attention_mask.numel(), "a batch without padding proves nothing"
    for step in (1, 3, 5, 7):
        assert "train/loss" in logged.steps[step]
        assert speed[step].keys() == {"speed/samples_per_s", "speed/tokens_per_s", "speed/padding", "speed/data_wait"}
        assert speed[step]["speed/samples_per_s"] == pytest.approx(3 / (FETCH + STEP))
        assert speed[step]["speed/tokens_per_s"] == pytest.approx(real / (FETCH + STEP))
        assert speed[step]["speed/padding"] == pytest.approx(1 - real / batch.input_ids.numel())
        assert speed[step]["speed/data_wait"] == pytest.approx(FETCH / (FETCH + STEP))
    assert trainer.profiler is profiler


def test_mfu_is_flops_by_time_and_peak(sizes, model, make_batch, make_trainer, logged, clock):
    batch = make_batch(model, [(1, {"image": 2, "video": 1}), (2, {"audio": 1}), (3, {})])
    module = module_of(sizes)
    trainer = make_trainer(clock, Throughput(peak_tflops=2e-6), max_steps=2, log_every_n_steps=2, logger=logged)
    trainer.fit(module, DataLoader(Slow(batch, 2, clock), batch_size=None))
    parts = module.model
    seen = {
        **{name: sum(p.numel() for p in encoder.parameters()) for name, encoder in parts.encoders.items()},
        **{kind: sum(p.numel() for p in way.aligner.parameters()) for kind, way in parts.modalities.items()},
    }
    tables = parts.llm.table.numel()
    body, head = sum(p.numel() for p in parts.llm.parameters()) - 2 * tables, tables
    positions = {"vision": (2 + 2) * 16, "hearing": 8, "image": 2 * 4, "video": 3, "audio": 3}
    weights = sum(seen[part] * count for part, count in positions.items())
    weights += body * int(batch.attention_mask.sum()) + head * batch.response_tokens
    (speed,) = logged.under("speed/").values()
    assert speed["speed/mfu"] == pytest.approx(6 * weights / ((FETCH + STEP) * 2e6), rel=1e-5)  # float32 in between


@pytest.mark.parametrize(("trained", "before", "per_weight"), [(True, True, 6), (False, True, 4), (False, False, 2)])
def test_flops_of_the_language_model_are_those_that_torch_counts(model, trained, before, per_weight):
    length, response = 40, 11
    model.requires_grad_(before)
    model.llm.requires_grad_(trained)
    costs = flops_per_position(model)
    embeds = torch.randn(1, length, model.llm.dim, requires_grad=before)
    labels = torch.full((1, length), -100)
    labels[:, -response:] = 7
    with FlopCounterMode(display=False) as counter:
        nll = model.llm(embeds, torch.ones(1, length, dtype=torch.bool), labels).nll
        if before:
            nll.backward()
    counted = sum(
        count
        for operation, count in counter.get_flop_counts()["Global"].items()
        if "mm" in str(operation) and "bmm" not in str(operation)  # attention between positions is left out
    )
    told = costs["llm"] * length + costs["head"] * response
    assert told == pytest.approx(counted, rel=0.02)  # the weights of norms multiply, but in no matrix
    matrix = 32 * 64  # of LLaMA's feed-forward layer
    assert costs["llm"] > per_weight * matrix * 6
    assert costs["llm"] < (per_weight + 1) * (matrix * 6 + 4 * 32 * 32 * 2 + 5 * 32)


@pytest.mark.parametrize("peak", [0, -312])
def test_a_peak_that_is_none_is_refused(peak):
    with pytest.raises(ConfigError, match=f"peak_tflops={peak}; expected a positive number"):
        Throughput(peak)


def test_nothing_changes(sizes, model, make_batch, make_trainer, logged):
    losses = []
    for callbacks in ([], [Throughput(peak_tflops=1)]):
        logged.steps.clear()
        torch.manual_seed(3)
        batch = make_batch(model, [(1, {"image": 2}), (2, {"audio": 1}), (3, {})])
        trainer = make_trainer(*callbacks, max_steps=3, log_every_n_steps=1, logger=logged)
        trainer.fit(module_of(sizes), DataLoader([batch] * 3, batch_size=None))
        losses.append([step["train/loss"] for step in logged.steps.values()])
    assert losses[0] == losses[1]
