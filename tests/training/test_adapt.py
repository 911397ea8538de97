"""Parts in full, frozen and with adapters: exactly the right names are trained, and merging changes no answer."""

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.utils.data import DataLoader

from macaw_lit.deferred import Deferred
from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw
from macaw_lit.training import adapt as adapting
from macaw_lit.training.adapt import PrintTrained, adapt, merge, report
from macaw_lit.training.module import MacawModule
from macaw_lit.training.nf4 import layers_in_4_bits
from macaw_lit.training.optim import MuonAdamW, adamw
from macaw_lit.types import Batch

MIXED = [(1, {"image": 1}), (2, {}), (3, {"image": 1, "video": 1, "audio": 1})]
TEXT = [(2, {}), (7, {})]
FROZEN = dict.fromkeys(("vision", "hearing", "aligners", "llm"), "frozen")
QLORA = {"lora": {"r": 2, "bits": 4}}
muon = partial(MuonAdamW, lr=0.01, adamw_lr=0.01, weight_decay=0.01)
plain = partial(adamw, lr=0.01, weight_decay=0.01)


def trained(model: Macaw) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def perturbed(model: Macaw) -> Macaw:
    """With adapters that do something: their second factor is zero at first."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def test_without_settings_everything_is_trained(model):
    before = trained(model)
    assert adapt(model, {}) == []
    assert trained(model) == before
    adapt(model, dict.fromkeys(FROZEN, "full"))
    assert trained(model) == before


@pytest.mark.parametrize(
    ("part", "prefix"),
    [("vision", "encoders.vision."), ("hearing", "encoders.hearing."), ("aligners", "modalities."), ("llm", "llm.")],
)
def test_a_part_alone_is_exactly_what_is_trained(model, part, prefix):
    before = trained(model)
    frozen = adapt(model, FROZEN | {part: "full"})
    assert trained(model) == {name for name in before if name.startswith(prefix)} != set()
    assert len(frozen) == 3
    assert not any(module.training for module in frozen)


def test_adapters_are_exactly_what_is_trained_beside_the_layers_that_are_named(model):
    adapt(model, FROZEN | {"llm": {"lora": {"r": 2, "targets": ["q_proj", "mlp.up_proj"]}}})
    layers = [f"llm.model.model.layers.{n}.{name}" for n in range(2) for name in ("self_attn.q_proj", "mlp.up_proj")]
    assert trained(model) == {f"{layer}.lora_{factor}.default.weight" for layer in layers for factor in "AB"}
    assert {len(p) for name, p in model.named_parameters() if "lora_A" in name} == {2}


def test_by_default_every_linear_layer_but_the_head_gets_an_adapter(model):
    adapt(model, {"llm": {"lora": {}}, "hearing": {"lora": {}}, "vision": {"lora": {}}, "aligners": {"lora": {}}})
    layers = {name.partition(".lora_")[0] for name in trained(model)}
    names = re.compile(r"\.\d+\.")
    assert {names.sub(".*.", layer) for layer in layers} == {
        *(f"llm.model.model.layers.*.self_attn.{name}_proj" for name in "qkvo"),
        *(f"llm.model.model.layers.*.mlp.{name}_proj" for name in ("gate", "up", "down")),
        *(f"encoders.hearing.encoder.blocks.*.attn.{name}" for name in ("query", "key", "value", "out")),
        *(f"encoders.hearing.encoder.blocks.*.mlp.{place}" for place in (0, 2)),
        *(f"encoders.vision.visual.transformer.resblocks.*.mlp.{name}" for name in ("c_fc", "c_proj")),
        *(f"modalities.{kind}.aligner.compress.linear" for kind in ("image", "video", "audio")),
    }


@pytest.mark.parametrize("rows", [MIXED, TEXT])
@pytest.mark.parametrize(
    "settings",
    [
        FROZEN | {"aligners": "full"},
        FROZEN | {"llm": {"lora": {}}},
        {part: {"lora": {"r": 2}} for part in FROZEN},
        dict.fromkeys(FROZEN, QLORA),
    ],
)
def test_all_that_is_trained_gets_a_gradient_and_nothing_else(model, make_batch, rows, settings):
    adapt(model, settings)
    perturbed(model)(make_batch(model, rows)).nll.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad and rows is MIXED:
            assert parameter.grad.any() or name.endswith("attn.key.bias"), name


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("config", ["llama", "gpt2"])
def test_merging_keeps_the_answers_and_leaves_no_trace(sizes, make_batch, config, bits):
    if config == "gpt2":  # its linear layers hold their weights transposed
        sizes["llm"]["config"] = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = Macaw.from_config(sizes).eval()
    names, batch = model.state_dict().keys(), make_batch(model, MIXED)
    before = model(batch).nll
    adapt(model, {part: {"lora": {"r": 2, "bits": bits}} for part in FROZEN})
    if bits is None:
        torch.testing.assert_close(model(batch).nll, before)  # B = 0
    with_adapters = perturbed(model.eval())(batch).nll
    assert abs(with_adapters - before) > 0.1
    merge(model)
    # W x + B A x against (W + B A) x in float32, through two layers
    torch.testing.assert_close(model(batch).nll, with_adapters, rtol=1e-4, atol=1e-4)
    assert model.state_dict().keys() == names


def test_an_adapter_is_the_formula(model):
    adapt(model, {"llm": {"lora": {"r": 4, "alpha": 6, "targets": ["q_proj"]}}})
    layer = perturbed(model).llm.model.model.layers[1].self_attn.q_proj
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = layer.base_layer.weight + 6 / 4 * second @ first
    merge(model)
    torch.testing.assert_close(model.llm.model.model.layers[1].self_attn.q_proj.weight, wanted)


def test_merging_writes_into_the_weights_where_they_lie(model):
    """They may be mapped from a file, and copies of all of them are a language model in memory."""
    adapt(model, {"llm": {"lora": {"r": 4}}})
    places = {
        name.replace("base_layer.", ""): weight.data_ptr() for name, weight in perturbed(model).named_parameters()
    }
    merge(model)
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == {
        name: place for name, place in places.items() if "lora_" not in name
    }


def test_in_4_bits_is_every_linear_layer_of_the_part_but_the_head(model):
    before = copy.deepcopy(model)
    adapt(model, FROZEN | {"llm": {"lora": {"r": 2, "targets": ["q_proj"], "bits": 4}}})
    layers = {f"self_attn.{name}_proj" for name in "kvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    layers |= {"self_attn.q_proj.base_layer"}
    inside = {f"llm.model.model.layers.{n}.{layer}" for n in range(2) for layer in layers}
    assert layers_in_4_bits(model).keys() == inside
    assert trained(model) == {name for name, _ in model.named_parameters() if "lora_" in name}
    others = {name for name, _ in model.named_parameters() if "lora_" not in name}
    assert others == {
        name for name, _ in before.named_parameters() if not re.search(r"layers\.\d\.\w+\.\w+_proj", name)
    }
    assert all(torch.equal(model.get_parameter(name), before.get_parameter(name)) for name in others)


def test_merged_weights_are_those_in_4_bits_and_the_product_and_never_in_4_bits_again(model):
    adapt(model, {"llm": {"lora": {"r": 4, "alpha": 6, "targets": ["q_proj"], "bits": 4}}})
    block = perturbed(model).llm.model.model.layers[1]
    q, up = block.self_attn.q_proj, block.mlp.up_proj
    product = 6 / 4 * q.lora_B["default"].weight @ q.lora_A["default"].weight
    wanted, beside = q.base_layer.dequantised(torch.float32) + product, up.dequantised(torch.float32)
    merge(model)
    assert not layers_in_4_bits(model)
    assert type(block.self_attn.q_proj) is type(block.mlp.up_proj) is torch.nn.Linear
    torch.testing.assert_close(block.self_attn.q_proj.weight, wanted)
    assert torch.equal(block.mlp.up_proj.weight, beside)


def test_in_4_bits_a_model_generates_and_takes_packed_rows_as_ever(model, make_batch):
    adapt(model, {"llm": QLORA})
    perturbed(model).eval()
    prompts, rows = make_batch(model, MIXED, "left"), make_batch(model, MIXED)
    new = model.generate(prompts, max_new_tokens=4)
    packed = model(make_batch(model, MIXED, row_length=64)).nll
    torch.testing.assert_close(packed, model(rows).nll, rtol=1e-5, atol=0)  # float32 sums in another order
    merge(model)
    assert torch.equal(model.generate(prompts, max_new_tokens=4), new)


def test_what_is_merged_has_the_precision_of_the_other_weights(model, make_batch):
    """As under DeepSpeed, which makes the whole model 16-bit; within it layers compute in 16 bit."""
    adapt(model, {"llm": QLORA})
    batch, model = make_batch(model, MIXED), perturbed(model).eval().bfloat16()
    with_adapters = model(batch).nll
    merge(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    # bfloat16 has 8 bits; one more rounding, of W + B A, through two layers
    torch.testing.assert_close(model(batch).nll, with_adapters, rtol=2e-2, atol=0)


@pytest.mark.parametrize("lora", [{"r": 2}, {"r": 2, "bits": 4}])
def test_a_merged_model_is_a_plain_folder_to_the_bit(model, make_batch, tmp_path, lora):
    adapt(model, {"llm": {"lora": lora}, "vision": "frozen"})
    perturbed(model)
    with pytest.raises(ConfigError, match="merge them first"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    merge(model)
    model.eval().save_pretrained(tmp_path / "model")
    again = Macaw.from_pretrained(tmp_path / "model")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    batch = make_batch(model, MIXED)
    with torch.no_grad():  # torch's attention has another way where nothing in a layer is trained
        assert torch.equal(again(batch).nll, model(batch).nll)
    assert not any(isinstance(module, PeftModel) for module in again.modules())


@pytest.mark.parametrize("bits", [None, 4])
def test_the_report_counts_what_is_trained(model, bits):
    values = sum(parameter.numel() for parameter in model.llm.parameters())
    adapt(model, FROZEN | {"aligners": "full", "llm": {"lora": {"r": 2, "targets": ["q_proj"], "bits": bits}}})
    rows = {row.part: row for row in report(model)}
    mode = "qlora, 4 bits" if bits else "lora"
    assert {part: row.mode for part, row in rows.items()} == FROZEN | {"aligners": "full", "llm": mode}
    adapters = 2 * (2 * 32 + 32 * 2)  # two layers of rank 2 on a width of 32
    assert (rows["llm"].trained, rows["llm"].values) == (adapters, values + adapters)
    layer = "model.model.layers.*.self_attn.q_proj.lora_"
    assert rows["llm"].names == [f"{layer}A.default.weight", f"{layer}B.default.weight"]
    assert rows["aligners"].trained == rows["aligners"].values > 0
    assert rows["vision"].trained == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sight": "full"}, r"model.adapt.sight names no part.*\['aligners', 'hearing', 'llm', 'vision'\]"),
        ({"llm": "thawed"}, "model.adapt.llm=thawed: expected full, frozen, or lora"),
        ({"llm": None}, "expected full, frozen, or lora"),
        ({"llm": {"lora": {}, "frozen": 1}}, "expected full, frozen, or lora"),
        ({"llm": {"lora": {"rank": 4}}}, "rank.*expected full, frozen, or lora"),
        ({"llm": {"lora": {"r": 0}}}, "r.*0"),
        ({"llm": {"lora": {"r": "many"}}}, "many"),
        ({"llm": {"lora": {"dropout": 2.0}}}, "dropout"),
        ({"llm": {"lora": {"targets": ["qproj"]}}}, r"targets=\['qproj'\]; the part has .*q_proj"),
        ({"llm": {"lora": {"targets": ["lm_head"]}}}, "no linear layer for LoRA"),
        ({"llm": {"lora": {"bits": 8}}}, r"model.adapt.llm.lora.bits=8: expected 4, .* or null"),
        ({"llm": {"lora": {"bits": 3}}}, "lora.bits=3: expected 4"),
        ({"llm": {"lora": {"bits": "4"}}}, "bits.*expected"),
        ({"llm": {"lora": {"bits": 4, "targets": ["lm_head"]}}}, "no linear layer for LoRA"),
        (FROZEN, "nothing is left to train"),
    ],
)
def test_settings_that_cannot_work_are_one_clear_line(model, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        adapt(model, settings)
    assert "\n" not in str(caught.value)


# ---- under a Trainer


@pytest.fixture
def fit(sizes: dict[str, Any], model: Macaw, make_batch: Callable[..., Batch], make_trainer: Callable[..., Any]):
    def run(optimizer: Any = muon, **settings: Any) -> tuple[MacawModule, Macaw]:
        module = MacawModule(sizes, optimizer, warmup_ratio=0.1, adapt=settings)
        module.configure_model()
        before = copy.deepcopy(module.model)
        batches = DataLoader([make_batch(model, MIXED)] * 3, batch_size=None)
        make_trainer(PrintTrained(), max_steps=3).fit(module, batches)
        return module, before

    return run


@pytest.mark.parametrize("optimizer", [muon, plain])
def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(fit, optimizer):
    module, before = fit(optimizer, vision="frozen", llm={"lora": {"r": 2}})
    start = before.state_dict()
    moved = {name for name, tensor in module.model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == trained(module.model)
    assert {name.split(".")[0] for name in moved} == {"encoders", "modalities", "llm"}
    groups = module.trainer.optimizers[0].param_groups
    seen = {id(parameter) for group in groups for parameter in group["params"]}
    assert seen == {id(parameter) for parameter in module.model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("optimizer", [muon, plain])
def test_bytes_stay_to_the_bit_while_adapters_move(fit, optimizer):
    module, before = fit(optimizer, vision="frozen", hearing=QLORA, llm=QLORA)
    start = before.state_dict()
    moved = {name for name, tensor in module.model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == trained(module.model)
    assert len(layers_in_4_bits(module.model)) == 2 * 7 + 6


def test_no_more_than_one_layer_has_memory_when_weights_become_4_bits(sizes, monkeypatch):
    seen: list[int] = []

    def watched(part, layers):
        for layer in layers:
            real = [name for name, p in part.named_parameters() if "lora_" not in name and not isinstance(p, Deferred)]
            seen.append(len(real))
            quantise(part, [layer])

    quantise = adapting.quantise
    monkeypatch.setattr(adapting, "quantise", watched)
    torch.manual_seed(0)
    module = MacawModule(sizes, plain, adapt=FROZEN | {"llm": QLORA})
    module.configure_model()
    assert seen == [0] * 14
    assert not any(isinstance(parameter, Deferred) for parameter in module.model.parameters())
    torch.manual_seed(0)
    whole = Macaw.from_config(sizes)
    adapt(whole, FROZEN | {"llm": QLORA})
    state = whole.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.model.state_dict().items())


def test_weights_become_4_bits_in_any_precision_of_a_trainer(sizes):
    torch.set_default_dtype(torch.bfloat16)  # as with bf16-true
    try:
        module = MacawModule(sizes, plain, adapt={"llm": QLORA, "hearing": {"lora": {"r": 2}}})
        module.configure_model()
    finally:
        torch.set_default_dtype(torch.float32)
    parts = module.model.parts()
    assert {p.dtype for p in parts["llm"].parameters()} == {torch.float32}, "which the Trainer casts later"
    assert {p.dtype for p in parts["hearing"].parameters()} == {torch.bfloat16}
    assert not any(isinstance(parameter, Deferred) for parameter in module.model.parameters())


def test_ddp_is_not_to_send_the_bytes_around(sizes):
    module = MacawModule(sizes, plain, adapt={"llm": QLORA})
    module.configure_model()
    ignored: Any = module._ddp_params_and_buffers_to_ignore
    own = {name for name, _ in module.named_buffers() if re.search(r"\.(codes|scales|statistics)$", name)}
    assert set(ignored) == own
    assert len(own) == 3 * 14


@pytest.mark.parametrize(("before", "after"), [(None, 4), (4, None)])
def test_a_checkpoint_of_lora_is_not_gone_on_with_in_4_bits_nor_the_other_way_round(sizes, before, after):
    made, other = (MacawModule(sizes, plain, adapt={"llm": {"lora": {"bits": bits}}}) for bits in (before, after))
    checkpoint: dict[str, Any] = {}
    made.on_save_checkpoint(checkpoint)
    made.on_load_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match=f"model.adapt.llm.lora.bits was {before}, now is {after}"):
        other.on_load_checkpoint(checkpoint)


def test_a_frozen_part_has_no_dropout_while_the_others_train(fit):
    module, _ = fit(vision="frozen")
    module.train()
    assert module.training
    assert not module.model.encoders["vision"].training
    assert module.model.llm.training
    module.eval()
    assert not module.model.llm.training


def test_what_is_trained_is_printed_when_training_starts(fit, capsys):
    module, _ = fit(vision="frozen", hearing="frozen", llm={"lora": {"r": 2}})
    printed = capsys.readouterr().out
    for row in report(module.model):
        assert re.search(rf"{row.part}\W+{row.mode}\W+{row.trained:,}\W+{row.values:,}", printed), row.part
    assert "layers.*.self_attn.q_proj.lora_A.default.weight" in re.sub(r"\s", "", printed)


@pytest.mark.parametrize("optimizer", [muon, plain])
def test_optimizers_do_without_matrices_and_refuse_to_do_without_anything(optimizer):
    norm, linear = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4, bias=False)
    for layer in (norm, linear):
        layer(torch.randn(2, 4)).pow(3).sum().backward()
        stepping = optimizer(layer)
        start = copy.deepcopy(layer.state_dict())
        stepping.step()
        assert not torch.equal(layer.weight, start["weight"])
        optimizer(layer).load_state_dict(stepping.state_dict())
    with pytest.raises(ConfigError, match="no parameter of the model is trainable"):
        optimizer(linear.requires_grad_(False))
