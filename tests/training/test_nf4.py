"""Weights in 4 bits against the paper written out: levels, blocks, double quantisation; products keep no weight."""

import copy
import logging
import subprocess
import sys

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from scipy.stats import norm
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from macaw_lit.errors import ConfigError
from macaw_lit.training.nf4 import NF4Linear, layers_in_4_bits, quantise, restore_weights, share

SHAPES = [(48, 80), (33, 48), (48, 33), (3, 5), (1, 1), (40, 1024)]  # rows of whole blocks, and others


def levels() -> torch.Tensor:
    """Quantiles of the normal distribution, seven below zero, zero, and eight above it, by the largest (appendix E)."""
    tail = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = norm.ppf(torch.linspace(tail, 0.5, 9)[:-1].double().numpy())
    below = -norm.ppf(torch.linspace(tail, 0.5, 8)[:-1].double().numpy())
    found = torch.tensor([*above, 0.0, *below]).sort().values
    return found / found.max()


def nearest(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Each value as the nearest level times its block's scale, by trying all sixteen."""
    flat = weight.flatten().double()
    own = scales.double().repeat_interleave(64)[: len(flat)]
    closest = (flat[:, None] - own[:, None] * levels()).abs().argmin(1)
    return (levels()[closest] * own).view_as(weight)


def blocks(weight: torch.Tensor) -> torch.Tensor:
    """Values in rows of 64, zeros at the end."""
    return F.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)


def scales_of(layer: NF4Linear) -> torch.Tensor:
    """mean + level[code] · factor, by hand from the bytes."""
    floats = layer.statistics.view(torch.float32)
    factors = floats[257:].repeat_interleave(256)[: len(layer.scales)]
    return floats[0] + floats[1:257][layer.scales.long()] * factors


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_is_the_nearest_level_of_its_block(shape):
    plain = nn.Linear(shape[1], shape[0])
    weight = plain.weight.detach().clone()
    layer = NF4Linear(plain)
    scales = scales_of(layer)
    true = blocks(weight).abs().amax(1)
    # of 256 levels of both signs those about the largest are 1/64 of it apart or less
    factors = (true - true.mean()).abs().max()
    assert (scales - true).abs().max() <= factors / 64 + 1e-7
    made = layer.dequantised(torch.float32)
    # codes are chosen by the true scale, and read by the one that was quantised
    exact = nearest(weight, true).flatten() / true.repeat_interleave(64)[: weight.numel()]
    wanted = (exact * scales.repeat_interleave(64)[: weight.numel()]).view(shape)
    torch.testing.assert_close(made.double(), wanted.double(), rtol=0, atol=1e-6)  # levels to 7 digits
    widest = levels().diff().max() / 2  # half of the widest gap, at -1
    bound = widest * true + (scales - true).abs()
    assert (blocks(made - weight).abs().amax(1) <= bound + 1e-6).all()


def test_double_quantisation_takes_4_127_bits_a_value():
    layer = NF4Linear(nn.Linear(1024, 1024, bias=False))
    assert layer.codes.numel() == 1024 * 512
    assert layer.scales.numel() == 1024 * 16
    constant = 4 * 257  # mean and levels, for a layer of any size
    assert (
        8 * (sum(buffer.nbytes for buffer in layer.buffers()) - constant) / layer.values == 4 + 8 / 64 + 32 / 64 / 256
    )


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [7, 0])
def test_a_product_and_its_gradient_are_those_of_the_weight(kind, dtype, rows):
    plain: nn.Module = (nn.Linear(33, 48) if kind == "Linear" else Conv1D(48, 33)).to(dtype)
    bias = torch.randn(48).to(dtype)
    plain.bias = nn.Parameter(bias)
    layer = NF4Linear(plain)
    weight = layer.dequantised(dtype)
    x = torch.randn(2, rows, 33, dtype=dtype, requires_grad=True)
    wanted = F.linear(x, weight if kind == "Linear" else weight.t(), bias)
    upstream = torch.randn_like(wanted)
    (expected,) = torch.autograd.grad(wanted, x, upstream)
    made = layer(x)
    (found,) = torch.autograd.grad(made, x, upstream)
    assert torch.equal(made, wanted)
    torch.testing.assert_close(found, expected)


def test_no_weight_is_kept_for_the_backward_pass():
    layer = NF4Linear(nn.Linear(64, 128))
    kept: list[torch.Tensor] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        FlopCounterMode(display=False) as counted,
    ):
        layer(torch.randn(4, 64, requires_grad=True)).sum().backward()
    assert not kept
    assert counted.get_total_flops() == 2 * 2 * 4 * 64 * 128, "the plan counts them too"


def test_autocast_chooses_the_type_of_the_product():
    layer = NF4Linear(nn.Linear(64, 64))
    x = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x.bfloat16()))
        assert layer(x).dtype == torch.bfloat16


def test_no_cast_touches_the_bytes():
    layer = NF4Linear(nn.Linear(64, 64))
    before, state = layer.dequantised(torch.float32), copy.deepcopy(layer.state_dict())
    layer.half().to(torch.bfloat16).float()
    assert torch.equal(layer.dequantised(torch.float32), before)
    assert all(torch.equal(layer.state_dict()[name], state[name]) for name in ("codes", "scales", "statistics"))
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_layers_are_exchanged_and_come_back_under_their_names():
    model = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 8, bias=False), nn.Linear(8, 4)))
    start = copy.deepcopy(model)
    quantise(model, [model[0], model[1][0]])
    assert [*layers_in_4_bits(model)] == ["0", "1.0"]
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    x = torch.randn(3, 32)
    wanted = model(x)
    assert torch.equal(again(x), wanted)
    restore_weights(model, torch.float32)
    assert [*model.state_dict()] == [*start.state_dict()]
    assert type(model[0]) is nn.Linear
    assert torch.equal(model(x), wanted)
    assert torch.equal(model[1][1].weight, start[1][1].weight)
    assert 0 < (model[0].weight - start[0].weight).abs().max() < 0.16 * start[0].weight.abs().max()
    assert [*layers_in_4_bits(again)] == ["0", "1.0"], "a copy is its own"


def test_a_weight_that_fills_no_whole_blocks_can_be_saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 5))
    quantise(model, [model[0]])
    weight = model[0].dequantised(torch.float32)
    restore_weights(model, torch.float32)
    save_torch_state_dict(model.state_dict(), tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["0.weight"], weight)


def test_an_outline_has_room_for_the_same_bytes():
    real = NF4Linear(nn.Linear(100, 30)).state_dict()
    with torch.device("meta"):
        outline = NF4Linear(nn.Linear(100, 30)).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in outline.items()} == {
        name: (t.shape, t.dtype) for name, t in real.items()
    }
    assert all(tensor.is_meta for tensor in outline.values())


def test_compiling_changes_nothing():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    quantise(model, [model[0]])
    compiled = torch.compile(model, dynamic=True, backend="aot_eager")
    for rows in (3, 5):
        x = torch.randn(rows, 64, requires_grad=True)
        gradients = [torch.autograd.grad(each(x).sum(), x)[0] for each in (model, compiled)]
        assert torch.equal(*gradients)


def test_nothing_is_shared_where_there_is_one_process():
    layer = nn.Sequential(NF4Linear(nn.Linear(64, 64)))
    before = layer[0].codes
    share(layer, torch.device("cpu"))
    assert layer[0].codes is before


def test_layers_of_other_products_are_refused():
    class Rounded(nn.Linear):
        pass

    with pytest.raises(ConfigError, match="a layer of class Rounded cannot be kept in 4 bits"):
        NF4Linear(Rounded(4, 4))


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"^lora.bits=4 needs bitsandbytes: pip install 'macaw-lit\[qlora\]'$"):
        NF4Linear(nn.Linear(4, 4))


@pytest.mark.slow
def test_nothing_is_said_when_the_library_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", "import macaw_lit.training.adapt, bitsandbytes"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert logging.getLogger("bitsandbytes.backends").getEffectiveLevel() == logging.ERROR
