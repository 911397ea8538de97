"""What comes later is, bit for bit, what would have come at once."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from macaw_lit.deferred import Deferred, deferred, deferring, materialised
from macaw_lit.errors import WeightsError
from macaw_lit.model import Macaw
from macaw_lit.training.adapt import adapt
from macaw_lit.weight_files import read_deferred, read_weights


def built(make: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    """A module from seed 0, and what is drawn next."""
    torch.manual_seed(0)
    return make(), torch.rand(2)


def assert_same_later(make: Callable[[], nn.Module]) -> nn.Module:
    plain, drawn = built(make)
    with deferring():
        module, drawn_later = built(make)
    assert torch.equal(drawn, drawn_later), "what is drawn afterwards hangs on what was drawn before"
    own, parameters = dict(plain.named_parameters()), dict(module.named_parameters())
    assert list(own) == list(parameters), "tied weights stay so"
    for name, parameter in parameters.items():
        assert isinstance(parameter, Deferred), name
        assert parameter.requires_grad == own[name].requires_grad
        assert torch.equal(materialised(parameter), own[name]), name
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, plain.get_buffer(name)), name
    return module


@pytest.mark.parametrize("tie", [False, True])
def test_a_whole_model_is_drawn_later_as_at_once(sizes, tie):
    sizes["llm"]["config"] = {**sizes["llm"]["config"], "tie_word_embeddings": tie}

    def make() -> nn.Module:
        model = Macaw.from_config(sizes)
        adapt(model, {"vision": "frozen", "hearing": {"lora": {"r": 2}}, "llm": {"lora": {"r": 2}}})
        return model

    assert_same_later(make)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50},
    "gpt_neox": {**SMALL, "intermediate_size": 64},
    "qwen3_moe": {**SMALL, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16, "num_key_value_heads": 1},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 50},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_so_are_other_architectures_of_transformers(kind):
    config = AutoConfig.for_model(kind, **OTHERS[kind])
    assert_same_later(lambda: AutoModelForCausalLM.from_config(copy.deepcopy(config)))


class Odd(nn.Module):
    """Initialises in all the ways that are seldom seen."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = nn.Parameter(0.5 * torch.randn(3, 4))
        self.part = nn.Parameter(torch.ones(5, 4))
        self.turned = nn.Parameter(torch.empty(4, 4))
        self.cut = nn.Parameter(torch.empty(6))
        self.shared = self.scaled
        self.layers = nn.ModuleList([copy.deepcopy(nn.Linear(2, 2))])
        with torch.no_grad():
            self.part[1:3].normal_()
            self.part[:, 0] = 7
            self.part.mul_(2).add_(self.scaled.sum())
            self.scaled[0].zero_()
            nn.init.orthogonal_(self.turned)
            nn.init.trunc_normal_(self.cut, std=2.0)
            self.cut.data[2] = float(self.turned[0, 0]) + torch.rand(())


def test_so_are_parts_views_copies_and_values_that_are_looked_at():
    module = assert_same_later(Odd)
    before = materialised(module.part).clone()
    materialised(module.part).zero_()
    assert torch.equal(materialised(module.part), before), "a value that is written into is not the source"
    assert "Deferred([5, 4], torch.float32)" in repr(module.part.detach())


def test_a_tensor_with_memory_takes_the_values_at_once():
    source = deferred(lambda: torch.arange(4.0), torch.empty(4, device="meta"))
    layer = nn.Linear(4, 1, bias=False)
    layer.load_state_dict({"weight": (source * 2)[None]})
    assert layer.weight.tolist() == [[0.0, 2.0, 4.0, 6.0]]
    assert bool(torch.equal(source, torch.arange(4.0)))


def test_only_what_lies_within_is_postponed():
    with deferring():
        assert isinstance(nn.Linear(2, 2).weight, Deferred)
        with torch.device("meta"):
            assert nn.Linear(2, 2).weight.is_meta
    assert not isinstance(nn.Linear(2, 2).weight, Deferred)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.t_(), "another shape"),
        (lambda tensor: tensor.normal_(generator=torch.Generator()), "a generator of its own"),
        (lambda tensor: torch._foreach_mul_([tensor], 2), "_foreach_mul_.* is not remembered"),
        (lambda tensor: torch.add(torch.ones(2, 3), 1, out=tensor), "add.out.* is not remembered"),
        (lambda tensor: torch.add(tensor, 1, out=tensor), "add.out.* is not remembered"),
        (lambda tensor: setattr(tensor, "data", torch.zeros(2, 3)), "`.data = …` .* is not remembered"),
        (lambda tensor: setattr(tensor, "data", tensor.half()), "`.data = …` .* is not remembered"),
        (lambda tensor: setattr(tensor, "data", tensor.flip(0)), "`.data = …` .* is not remembered"),
    ],
)
def test_what_cannot_be_remembered_is_an_error(change, message):
    with pytest.raises(RuntimeError, match=message):
        change(deferred(lambda: torch.ones(2, 3), torch.empty(2, 3, device="meta")))


def test_what_writes_into_memory_alone_or_changes_nothing_is_done():
    tensor, memory = deferred(lambda: torch.ones(2), torch.empty(2, device="meta")), torch.zeros(2)
    torch._foreach_add_([memory], [tensor])
    torch.add(tensor, memory, out=memory)
    assert memory.tolist() == [2.0, 2.0]
    with deferring():
        layer = nn.Linear(2, 2)
    layer.float().to("cpu")
    assert isinstance(layer.weight, Deferred)


def test_copies_have_the_values_and_go_their_own_way():
    """Detection models clone their layers while they build."""
    both = deferred(lambda: torch.arange(4.0), torch.empty(4, device="meta"))
    layer = nn.Module()
    layer.register_parameter("part", nn.Parameter(both[2:]))
    layer.register_parameter("frozen", nn.Parameter(both.view(2, 2).t(), requires_grad=False))
    layer.tied, layer.part.mark = layer.part, "kept"
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.part.mul_(10)
        layer.part.zero_()
    assert materialised(twin.part).tolist() == [20.0, 30.0]
    assert materialised(twin.frozen).tolist() == [[0.0, 2.0], [1.0, 3.0]]
    assert materialised(layer.part).tolist() == [0.0, 0.0]
    assert isinstance(twin.part, nn.Parameter)
    assert (twin.part.requires_grad, twin.frozen.requires_grad, twin.part.mark) == (True, False, "kept")
    assert twin.tied is twin.part


def test_a_source_that_has_changed_is_an_error():
    with pytest.raises(RuntimeError, match=r"\[3\] of torch.float32 came where \[2\]"):
        materialised(deferred(lambda: torch.ones(3), torch.empty(2, device="meta")))


@pytest.fixture(params=["safetensors", "shards", "bin", "old_bin"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small GPT-2 in bf16, whose tied head is stored once or twice."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **OTHERS["gpt2"])).bfloat16()
    if request.param.endswith("bin"):
        new = request.param == "bin"
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    else:
        model.save_pretrained(tmp_path, max_shard_size="20KB" if request.param == "shards" else "1GB")
        assert (len([*tmp_path.glob("*.safetensors")]) > 1) == (request.param == "shards")
    return tmp_path


def test_files_are_read_later_as_at_once(published):
    at_once, found = read_weights(published), read_deferred(published)
    assert found.keys() == at_once.keys()
    for name, tensor in found.items():
        assert isinstance(tensor, Deferred)
        assert torch.equal(materialised(tensor), at_once[name])
        assert materialised(tensor).dtype == torch.bfloat16


def test_a_damaged_or_missing_shard_is_told_before_anything_is_read(published):
    first = min([*published.glob("*.safetensors"), *published.glob("*.bin")])
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="is damaged"):
        read_deferred(published)
    shutil.rmtree(published)
    with pytest.raises(WeightsError, match="holds no weights"):
        read_deferred(published)
