"""Plans of the tiny model against the model itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from macaw_lit.cli import conf_dir
from macaw_lit.data.collate import lay_out
from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw
from macaw_lit.planning.plan import Plan, _count, make_plan
from macaw_lit.training.adapt import adapt
from macaw_lit.training.nf4 import layers_in_4_bits
from macaw_lit.training.optim import MuonAdamW, adamw

LORA = {"vision": "frozen", "hearing": "frozen", "aligners": "full", "llm": {"lora": {"r": 4}}}
QLORA = {**LORA, "llm": {"lora": {"r": 4, "bits": 4}}}


@pytest.fixture
def settings(sizes: dict[str, Any], tokenizer_folder: Path) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("plan", overrides=["trainer=cpu", f"model.llm.tokenizer={tokenizer_folder}"])
    found: Any = OmegaConf.to_container(cfg)
    return {**found, "model": {**sizes, "adapt": {}}}


def planned(settings: dict[str, Any], adapted: dict[str, Any] | None = None, **more: Any) -> Plan:
    return make_plan({**settings, **more, "model": {**settings["model"], "adapt": adapted or {}}})


@pytest.mark.parametrize("adapted", [{}, LORA, {"llm": "frozen"}])
def test_parameters_by_part_sum_to_the_model_s(settings: dict[str, Any], model: Macaw, adapted: dict[str, Any]) -> None:
    adapt(model, adapted)
    plan = planned(settings, adapted)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sum(part[1] for part in plan.parts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(part[0] for part in plan.parts.values()) == trained
    assert plan.memory["gradients"] == 4 * trained
    assert plan.memory["optimizer states"] == 8 * trained


def test_optimizer_states_are_those_of_a_real_step(settings: dict[str, Any], model: Macaw) -> None:
    muon = {"_target_": "macaw_lit.training.optim.MuonAdamW", "_partial_": True, "adamw_lr": 1e-3}
    for real, own in (
        (adamw(model, 1e-3, 0.0), settings["optim"]),
        (MuonAdamW(model, 1e-3, 1e-3, 0.0), {**muon, "lr": 1e-3, "weight_decay": 0.0}),
    ):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        real.step()
        states = [state for part in getattr(real, "parts", [real]) for state in part.state.values()]
        kept = sum(value.nbytes for state in states for value in state.values() if value.ndim or value.numel() > 1)
        # scalars are left out above as counts of steps; three learned temperatures with two states each are scalars too
        assert planned(settings, optim=own).memory["optimizer states"] - kept == 3 * 2 * 4


def test_frozen_parts_keep_no_graph(settings: dict[str, Any]) -> None:
    full, frozen = (planned(settings, mode).memory for mode in ({}, {"vision": "frozen", "hearing": "frozen"}))
    assert frozen["activations"] < full["activations"]
    assert frozen["gradients"] < full["gradients"]


def test_memory_and_operations_grow_with_the_batch(settings: dict[str, Any]) -> None:
    four, eight = (planned(settings, data={**settings["data"], "batch_size": rows}) for rows in (4, 8))
    assert eight.memory["activations"] == pytest.approx(2 * four.memory["activations"], rel=0.01)  # masks are the same
    assert eight.memory["weights"] == four.memory["weights"]
    assert eight.flops == pytest.approx(2 * four.flops, rel=0.01)


def test_weights_in_4_bits_are_bytes_that_no_strategy_deals_out(settings: dict[str, Any], model: Macaw) -> None:
    adapt(model, QLORA)
    layers = layers_in_4_bits(model).values()
    own = sum(buffer.nbytes for layer in layers for buffer in layer.buffers())
    alone, plain = planned(settings, QLORA), planned(settings, LORA)
    assert alone.memory["weights in 4 bits"] == own
    assert plain.memory["weights"] - alone.memory["weights"] == 4 * sum(layer.values for layer in layers)
    assert (alone.parts, alone.folder) == (plain.parts, plain.folder), "saved as it was"
    assert alone.flops == plain.flops
    trainer = {**settings["trainer"], "strategy": "deepspeed_stage_3", "accelerator": "gpu", "devices": 4}
    dealt, once = (planned(settings, QLORA, trainer={**trainer, "strategy": f"deepspeed_stage_{n}"}) for n in (3, 2))
    assert dealt.memory["weights in 4 bits"] == once.memory["weights in 4 bits"] == own
    assert dealt.checkpoint - once.checkpoint == 3 * own, "each process writes them"


def test_an_unknown_optimizer_is_said(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no plan for it"):
        planned(settings, optim={"_target_": "torch.optim.SGD"})


def test_hours_are_unknown_where_only_the_data_knows(settings: dict[str, Any]) -> None:
    one = {"train": {"mine": {"count": None}}}
    assert planned(settings, data={**settings["data"], **one}).hours is None
    stopped = planned(settings, data={**settings["data"], **one}, trainer={**settings["trainer"], "max_steps": 7})
    assert stopped.steps == 7


def test_packing_changes_nothing_for_rows_that_are_all_alike_and_is_refused_where_training_refuses_it(
    settings: dict[str, Any],
) -> None:
    packed = {**settings["data"], "pack_rows": True}
    assert planned(settings, data=packed) == planned(settings)
    assert lay_out([137] * 8, 512) == [[place] for place in range(8)], "as the plan has them"
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}
    sizes = {**settings["model"], "llm": {**settings["model"]["llm"], "config": bloom}}
    with pytest.raises(ConfigError, match="of type bloom is not known to keep packed samples apart"):
        planned({**settings, "model": sizes}, data=packed)


@pytest.mark.parametrize(
    ("sources", "rows_per_epoch", "trainer", "steps"),
    [
        ({"a": {"count": 60}, "b": {"count": 41}}, None, {}, 3 * 26),  # 101 rows in batches of 4
        ({"a": {"weight": 2}, "b": {"weight": 1}}, 100, {}, 3 * 25),
        ({"a": {"count": 101}}, None, {"devices": 2, "accumulate_grad_batches": 3}, 3 * 5),  # 50 rows each: 13 batches
        ({"a": {"count": 101}}, None, {"limit_train_batches": 0.5}, 3 * 13),
        ({"a": {"count": 101}}, None, {"limit_train_batches": None}, 3 * 26),
        ({"a": {"count": 101}}, None, {"limit_train_batches": 7, "max_steps": 20}, 20),
    ],
)
def test_steps_are_those_that_the_data_module_will_deal_out(
    settings: dict[str, Any],
    sources: dict[str, Any],
    rows_per_epoch: int | None,
    trainer: dict[str, Any],
    steps: int,
) -> None:
    data = {**settings["data"], "train": sources, "rows_per_epoch": rows_per_epoch, "batch_size": 4}
    assert planned(settings, data=data, trainer={**settings["trainer"], **trainer}).steps == steps


def test_weights_that_the_data_module_would_refuse_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"set data\.rows_per_epoch"):
        planned(settings, data={**settings["data"], "train": {"a": {"weight": 1}}})


def test_a_list_within_a_block_is_counted_with_it(settings: dict[str, Any], model: Macaw) -> None:
    """As experts in a layer may be; what is gathered for the whole pass must not be less than nothing."""
    before = _count(model, settings["optim"])
    layer = next(part for part in model.llm.modules() if isinstance(part, torch.nn.ModuleList))[0]
    layer.experts = torch.nn.ModuleList([torch.nn.Linear(100, 100, bias=False) for _ in range(4)])
    after = _count(model, settings["optim"])
    assert (after.all, after.root) == (before.all + 40_000, before.root)
    assert after.block == sum(parameter.numel() for parameter in layer.parameters()) > 40_000
