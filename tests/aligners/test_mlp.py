"""The perceptron aligner is Eq. 3, a GELU and one more layer."""

import math

import torch

from macaw_lit.aligners.linear import LinearAligner
from macaw_lit.aligners.mlp import MLPAligner

SIZES = {"dim_in": 6, "seq_len": 10, "dim_out": 8, "kernel": 4, "stride": 3}


def test_values_are_those_of_the_formula():
    aligner, first = MLPAligner(**SIZES).double(), LinearAligner(**SIZES).double()
    first.compress.load_state_dict(aligner.compress.state_dict())
    features, table = torch.randn(2, 10, 6, dtype=torch.float64), torch.zeros(5, 8, dtype=torch.float64)
    hidden = first(features, table)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    layer = aligner.second[1]
    # float64: sums of eight terms near 1
    torch.testing.assert_close(aligner(features, table), gelu @ layer.weight.T + layer.bias, rtol=0, atol=1e-12)


def test_without_a_convolution_it_is_the_projector_of_llava():
    aligner = MLPAligner(**SIZES | {"kernel": None, "stride": None})
    assert {name: tuple(weight.shape) for name, weight in aligner.state_dict().items()} == {
        "compress.linear.weight": (8, 6),
        "compress.linear.bias": (8,),
        "second.1.weight": (8, 8),
        "second.1.bias": (8,),
    }
    assert aligner.num_tokens == 10
