"""Steps that overflow are counted and end training where they are all there is; so does a loss that is not finite."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from macaw_lit.errors import ConfigError, TrainingError
from macaw_lit.training.finite import StopAtOverflows
from macaw_lit.training.module import MacawModule
from macaw_lit.training.optim import adamw
from macaw_lit.types import Batch

MIXED = [(1, {"image": 1}), (2, {}), (3, {"image": 1, "video": 1, "audio": 1})]
LAYER = "model.model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def fit(sizes: dict[str, Any], model: Any, make_batch: Callable[..., Batch], make_trainer: Callable[..., Any]):
    """Trains for `steps` in fp16 with a scaler, as on a GPU; the gradient of one layer overflows in those given."""

    def run(stop: StopAtOverflows, steps: int, overflows: set[int], poison: Any = None, **settings: Any) -> Any:
        module = MacawModule(sizes, partial(adamw, lr=0.01, weight_decay=0.0))
        module.configure_model()
        trainer = make_trainer(stop, max_steps=steps, **settings)

        def overflow(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * (torch.inf if trainer.global_step in overflows else 1.0)

        module.model.llm.get_parameter(LAYER).register_hook(overflow)
        batch = make_batch(model, MIXED)
        if poison:
            poison(module.model, batch)
        trainer.fit(module, DataLoader([batch] * 20, batch_size=None))
        return trainer

    return run


def fp16() -> list[MixedPrecision]:
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))]


def test_too_many_overflows_in_a_row_end_training_with_the_layer_they_began_in(fit):
    stop = StopAtOverflows(max_overflows=3)
    with pytest.raises(TrainingError) as caught:
        fit(stop, 20, {2, 5, 6, 7}, plugins=fp16())
    message = str(caught.value)
    assert "\n" not in message
    assert "3 steps in a row overflowed fp16 by step 8" in message
    assert "loss scale is down to 64:" in message, "2^10, halved four times"
    assert f"first in llm: {LAYER};" in message
    assert "bf16" in message
    assert stop.state_dict() == {"skipped": 4, "in_a_row": 3}


def test_a_few_overflows_are_counted_and_training_goes_on(fit):
    stop = StopAtOverflows(max_overflows=3)
    trainer = fit(stop, 6, {0, 1, 3}, plugins=fp16())
    assert trainer.global_step == 6
    assert stop.state_dict() == {"skipped": 3, "in_a_row": 0}
    assert float(trainer.callback_metrics["train/skipped_steps"]) == 3
    assert float(trainer.callback_metrics["train/loss_scale"]) == 2.0**7
    again = StopAtOverflows()
    again.load_state_dict(stop.state_dict())
    assert again.skipped == 3


def test_where_the_loss_is_not_scaled_nothing_is_counted(fit):
    stop = StopAtOverflows(max_overflows=1)
    trainer = fit(stop, 2, set())
    assert stop.skipped == 0
    assert "train/loss_scale" not in trainer.callback_metrics


def nan_picture(model: Any, batch: Batch) -> None:
    batch.media["image"].values[0, 0, 0, 0] = torch.nan


def nan_weight(model: Any, batch: Batch) -> None:
    model.llm.get_parameter(LAYER).data[0, 0] = torch.nan


def huge_norm(model: Any, batch: Batch) -> None:
    model.encoders["vision"].visual.ln_post.weight.data.fill_(3e38)


def huge_head(model: Any, batch: Batch) -> None:
    model.llm.model.lm_head.weight.data.fill_(3e38)


@pytest.mark.parametrize(
    ("poison", "where"),
    [
        (nan_picture, "the image itself"),
        (nan_weight, "the weights of llm"),
        (huge_norm, "the output of vision"),
        (huge_head, "the output of llm"),
    ],
)
def test_a_loss_that_is_not_finite_ends_training_with_its_rows_and_where_it_began(fit, poison, where):
    with pytest.raises(TrainingError) as caught:
        fit(StopAtOverflows(), 3, set(), poison)
    message = str(caught.value)
    assert "\n" not in message
    assert f"step 0: the loss of tiny/1, tiny/2, tiny/3 is not finite, which begins with {where};" in message


def test_what_gradients_broke_is_found_in_the_weights(fit):
    """In fp32 no step is skipped: the next loss tells."""
    with pytest.raises(TrainingError, match="step 2: .* begins with the weights of llm"):
        fit(StopAtOverflows(), 4, {1})


def test_a_limit_must_be_positive():
    with pytest.raises(ConfigError, match="max_overflows=0; expected at least 1"):
        StopAtOverflows(0)
