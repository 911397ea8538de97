"""What a machine or a strategy cannot do is refused in one line, before anything is built."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import nn

from macaw_lit.errors import ConfigError
from macaw_lit.training import strategies
from macaw_lit.training.optim import MuonAdamW, adamw
from macaw_lit.training.strategies import (
    FSDP2,
    ZeRO,
    check_compiled,
    check_machine,
    check_optimizer,
    check_strategy,
)

ZERO = {"_target_": "macaw_lit.training.strategies.ZeRO", "stage": 3}


@pytest.mark.parametrize(
    ("settings", "gpus", "cuda", "message"),
    [
        ({"accelerator": "gpu"}, 0, False, "no GPU is to be seen: choose trainer=cpu"),
        ({"accelerator": "cuda"}, 0, False, "no GPU is to be seen"),
        ({"accelerator": "cpu", "strategy": ZERO}, 8, True, "DeepSpeed needs NVIDIA GPUs"),
        ({"accelerator": "auto", "strategy": "deepspeed_stage_2"}, 0, False, "DeepSpeed needs NVIDIA GPUs"),
        ({"accelerator": "gpu", "strategy": ZERO}, 1, False, "DeepSpeed needs NVIDIA GPUs"),
        ({"accelerator": "cpu", "precision": "16-mixed"}, 8, True, "precision=16-mixed on a CPU.*bf16-mixed"),
        ({"accelerator": "auto", "precision": 16}, 0, False, "precision=16 on a CPU"),
        ({"accelerator": "gpu", "devices": 8}, 4, True, "devices=8, and 4 GPUs are to be seen"),
    ],
)
def test_what_a_machine_cannot_run_is_one_line(settings, gpus, cuda, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_machine(settings, gpus, cuda)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "gpus", "cuda"),
    [
        ({"accelerator": "cpu", "devices": 4, "precision": "bf16-mixed"}, 0, False),
        ({"accelerator": "auto", "precision": "32-true", "devices": "auto"}, 0, False),
        ({"accelerator": "gpu", "devices": -1, "precision": "16-mixed", "strategy": ZERO}, 8, True),
        ({"accelerator": "gpu", "devices": 8, "strategy": "ddp"}, 8, True),
        ({"accelerator": "gpu", "devices": [0, 1], "precision": "16-mixed"}, 2, True),
    ],
)
def test_what_it_can_run_passes(settings, gpus, cuda):
    check_machine(settings, gpus, cuda)


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
def test_strategies_of_lightning_that_train_wrongly_are_refused(kind):
    with pytest.raises(ConfigError, match=rf"strategy {kind.__name__} of Lightning .*macaw_lit.*trainer=") as caught:
        check_strategy(kind())
    assert "\n" not in str(caught.value)


def test_fp16_without_masters_is_left_to_deepspeed_that_keeps_them():
    def strategy(kind: type[Strategy], plugin: Precision) -> Strategy:
        made = kind()
        made.precision_plugin = plugin
        return made

    for kind in (DDPStrategy, FSDP2):
        with pytest.raises(ConfigError, match="precision=16-true has neither .*16-mixed or bf16-mixed"):
            check_strategy(strategy(kind, HalfPrecision("16-true")))
        check_strategy(strategy(kind, HalfPrecision("bf16-true")))
        check_strategy(kind())
    check_strategy(strategy(ZeRO, Precision()))


@pytest.mark.parametrize(("precision", "kind"), [("16-mixed", "fp16"), ("bf16-mixed", "bf16")])
def test_deepspeed_is_told_what_the_trainer_says(precision, kind):
    """By Lightning's own formatting; nothing is left for DeepSpeed to find out by itself."""
    strategy = ZeRO(stage=3, precision_plugin=DeepSpeedPrecision(precision))
    data = SimpleNamespace(batch_size=4)
    trainer = SimpleNamespace(accumulate_grad_batches=3, gradient_clip_val=0.5, datamodule=data)
    strategy._lightning_module = SimpleNamespace(trainer=trainer)
    strategy._init_config_if_needed()
    told = strategy.config
    assert (told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (4, 3)
    assert told["gradient_clipping"] == 0.5
    assert {name for name in ("fp16", "bf16") if told.get(name, {}).get("enabled")} == {kind}
    assert "auto" not in str(told)
    assert "train_batch_size" not in told


def test_an_optimizer_of_whole_matrices_is_refused_where_there_are_pieces(model):
    muon = partial(MuonAdamW, lr=0.01, adamw_lr=0.01, weight_decay=0.0)(model)
    for strategy in (ZeRO(), FSDP2()):
        with pytest.raises(ConfigError, match=rf"optim=muon with {type(strategy).__name__}.*optim=adamw"):
            check_optimizer(strategy, muon)
        check_optimizer(strategy, adamw(model, lr=0.01, weight_decay=0.0))
    check_optimizer(SingleDeviceStrategy(torch.device("cpu")), muon)


def test_zero_says_nothing_that_the_trainer_says():
    """Batch, accumulation, clipping and precision come from the Trainer: a second opinion could only differ."""
    for stage in (1, 2, 3):
        config = ZeRO(stage).config
        assert config["zero_optimization"]["stage"] == stage
        assert not {"gradient_clipping", "gradient_accumulation_steps", "train_batch_size", "fp16", "bf16"} & set(
            config
        )


def test_blocks_are_not_compiled_where_their_layers_are_filled_one_by_one():
    with pytest.raises(ConfigError, match=r"compiled=\['llm'\] with ZeRO-3.*compiled=\[\], or ZeRO-2 or FSDP2"):
        check_compiled(ZeRO(3), ["llm"])
    for strategy, parts in ((ZeRO(3), []), (ZeRO(2), ["llm"]), (FSDP2(), ["llm"]), (None, ["llm"])):
        check_compiled(strategy, parts)


def test_fsdp2_casts_what_it_gathers_and_leaves_nothing_to_autocast():
    strategy = FSDP2()
    assert strategy.policy.param_dtype is None
    strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu")
    assert (strategy.policy.param_dtype, strategy.policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert strategy.precision_plugin.precision == "bf16-mixed"
    with strategy.precision_plugin.forward_context():
        assert not torch.is_autocast_enabled("cpu")
    assert FSDP2().policy.param_dtype is None, "others are not touched"
    with pytest.raises(ConfigError, match="16-mixed with FSDP2.*choose bf16-mixed"):
        FSDP2().precision_plugin = MixedPrecision("16-mixed", "cpu")


def test_constants_that_enter_arithmetic_get_the_precision_of_gathered_weights(monkeypatch):
    """FSDP2 casts parameters alone; what of its types does not fit ends the first step."""
    module = nn.Linear(2, 2)
    for name in ("table", "inv_freq"):
        module.register_buffer(name, torch.ones(2), persistent=False)
    strategy = FSDP2()
    strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu")
    monkeypatch.setattr(FSDP2, "root_device", torch.device("cpu"))
    monkeypatch.setattr(FSDP2, "device_mesh", {"data_parallel": None})
    monkeypatch.setattr(strategies.distributed, "broadcast", lambda tensor, src: None)
    seen: list[torch.dtype] = []
    monkeypatch.setattr(strategies, "fully_shard", lambda whole, **_: seen.extend([whole.table.dtype]))
    strategy.deal_out(module)
    assert seen == [torch.bfloat16]
    assert (module.inv_freq.dtype, module.weight.dtype) == (torch.float32, torch.float32)
