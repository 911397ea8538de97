"""Shadows against real tensors: same shapes, same decisions, and the bytes that really live."""

import gc

import torch
from torch import nn
from torch.nn import functional as F

from macaw_lit.planning.shadow import GRADIENTS, Ledger, Shadow, shadow


def of(*shape: int, ledger: Ledger, dtype: torch.dtype = torch.float32) -> Shadow:
    return Shadow(torch.empty(*shape, dtype=dtype, device="meta"), ledger)


def test_only_what_lives_is_counted_and_views_are_not() -> None:
    ledger = Ledger()
    ledger.watch("all")
    first = of(10, 3, ledger=ledger)
    second = first + 1
    view = second.t()[:2]
    assert sum(ledger.live.values()) == 2 * 120
    del second
    assert sum(ledger.live.values()) == 2 * 120  # the view holds it
    assert view.shape == (2, 10)
    del view
    gc.collect()
    assert sum(ledger.live.values()) == 120
    assert sum(ledger.peaks["all"].values()) == 240


def test_in_place_operations_take_nothing_and_give_the_same_tensor() -> None:
    ledger = Ledger()
    tensor = of(5, ledger=ledger)
    assert tensor.mul_(2).add_(tensor) is tensor
    assert sum(ledger.live.values()) == 20


def test_real_masks_choose() -> None:
    ledger = Ledger()
    mask = torch.tensor([True, False, True])
    assert of(3, 4, ledger=ledger)[mask].shape == (2, 4)


def test_attention_is_fused_as_on_a_real_device() -> None:
    ledger = Ledger()
    query = of(1, 2, 256, 8, ledger=ledger).requires_grad_()
    out = F.scaled_dot_product_attention(query, query, query)
    assert out.shape == query.shape
    scores = 2 * 256 * 256 * 4
    assert sum(ledger.live.values()) < scores
    assert ledger.flops == 2 * (2 * 2 * 256 * 256 * 8)  # two products of 256 × 8 by 8 × 256 for each of two heads


def test_a_layer_keeps_what_autograd_saves_and_gets_its_gradients() -> None:
    """Linear → GELU → Linear on [4, 8]: written out."""
    ledger = Ledger()
    with torch.device("meta"):
        layers = nn.Sequential(nn.Linear(8, 16, bias=False), nn.GELU(), nn.Linear(16, 8, bias=False))
    shadow(layers, ledger, torch.float32)
    assert ledger.live["weights"] == 2 * 8 * 16 * 4
    inputs = of(4, 8, ledger=ledger)
    out = layers(inputs).sum()
    # inputs and the product that GELU and the second layer save, 4 bytes each; the sum; the second product has gone
    assert ledger.live["activations"] == 4 * (4 * 8 + 4 * 16 + 4 * 16 + 1)
    out.backward()
    assert ledger.live[GRADIENTS] == 2 * 8 * 16 * 4
    assert all(parameter.grad is not None for parameter in layers.parameters())
    assert ledger.flops == 2 * 4 * 8 * 16 * (2 + 3)  # no gradient is taken with respect to the inputs


def test_autocast_casts_as_on_a_real_device() -> None:
    ledger = Ledger()
    with torch.device("meta"):
        layer = nn.Linear(8, 16)
    shadow(layer, ledger, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(of(2, 8, ledger=ledger)), nn.Linear(8, 16)(torch.zeros(2, 8))
        assert ours.dtype == theirs.dtype == torch.bfloat16
        assert ledger.live["weights cast by autocast"] == (8 * 16 + 16) * 2  # kept until autocast ends
    assert ledger.live["weights cast by autocast"] == 0


def test_what_is_shared_stays_shared() -> None:
    with torch.device("meta"):
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    both = shadow(nn.ModuleList([first, second]), Ledger(), torch.float32)
    assert both[0].weight is both[1].weight


def test_a_kernel_is_asked_once_for_shapes_that_come_again() -> None:
    ledger, calls = Ledger(), []

    def kernel(*args: torch.Tensor) -> torch.Tensor:
        calls.append(args)
        return torch.ops.aten.mm.default(*args)

    kernel._overloadpacket = torch.ops.aten.mm  # type: ignore[attr-defined]
    first, second, other = (torch.empty(*shape, device="meta") for shape in ((3, 4), (4, 5), (4, 6)))
    made = [ledger.run(kernel, pair, {}) for pair in ((first, second), (first, second), (first, other))]
    assert len(calls) == 2
    assert [tuple(each.shape) for each in made] == [(3, 5), (3, 5), (3, 6)]
    assert ledger.flops == 2 * 3 * 4 * (5 + 5 + 6)
    assert made[0].untyped_storage()._cdata != made[1].untyped_storage()._cdata


def test_what_is_asked_once_tells_types_and_views_apart() -> None:
    ledger = Ledger()
    whole = of(4, ledger=ledger, dtype=torch.int64)
    assert [(whole * factor).dtype for factor in (2, 2.0, 2)] == [torch.int64, torch.float32, torch.int64]
    before = sum(ledger.live.values())
    views = [whole.view(2, 2), whole.view(2, 2), whole[1:]]
    assert sum(ledger.live.values()) == before, views
