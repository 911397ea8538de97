"""What is not rounded when a model is cast: angles are positions times frequencies, and errors grow with them."""

import copy

import pytest
import torch
from torch import nn

from macaw_lit.precision import ExactConstants, cast_constants


class Angles(ExactConstants):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.inner.register_buffer("inv_freq", torch.tensor([1.0, 0.7310001]), persistent=False)
        self.register_buffer("table", torch.tensor([0.7310001]), persistent=False)
        self.register_buffer("stored", torch.tensor([0.7310001]))
        self.register_buffer("order", torch.arange(3), persistent=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_constants_are_exact_and_weights_are_cast(dtype):
    outer = nn.Sequential(Angles()).to(dtype)  # as a trainer casts what holds it
    angles = outer[0]
    assert torch.equal(angles.inner.inv_freq, torch.tensor([1.0, 0.7310001]))
    assert {each.dtype for each in (angles.inner.weight, angles.stored, angles.table)} == {dtype}
    assert angles.order.dtype == torch.int64
    assert torch.equal(outer.to(torch.float32)[0].inner.inv_freq, torch.tensor([1.0, 0.7310001]))


def test_strategies_that_cast_weights_themselves_cast_the_same_constants():
    for dtype in (None, torch.bfloat16):
        angles = Angles()
        cast_constants(angles, dtype)
        assert angles.table.dtype == (dtype or torch.float32)
        assert angles.inner.inv_freq.dtype == angles.stored.dtype == angles.inner.weight.dtype == torch.float32
        assert angles.order.dtype == torch.int64


def test_constants_move_with_the_rest():
    angles = Angles().to("meta", torch.bfloat16)
    assert (angles.inner.inv_freq.device.type, angles.inner.inv_freq.dtype) == ("meta", torch.float32)
    assert Angles().to("meta").to_empty(device="cpu").inner.inv_freq.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_language_model_is_one_whose_weights_alone_are_rounded(model, dtype):
    expected = copy.deepcopy(model.llm)
    with torch.no_grad():
        for parameter in expected.parameters():  # rounded, and computed with in float32
            parameter.copy_(parameter.to(dtype))
    rotation = model.to(dtype).llm.model.model.rotary_emb.inv_freq
    assert torch.equal(rotation, expected.model.model.rotary_emb.inv_freq)
    widened = model.float()
    embeds, mask = torch.randn(1, 200, widened.llm.dim), torch.ones(1, 200, dtype=torch.bool)
    # the same weights, constants and operations: no tolerance. Rounded frequencies would be off by 0.01 and more.
    assert torch.equal(widened.llm(embeds, mask).logits, expected(embeds, mask).logits)
