"""The resampler against its layers written out, and how it counts its tokens."""

import math

import pytest
import torch
from torch import Tensor

from macaw_lit.aligners.perceiver import PerceiverAligner
from macaw_lit.errors import ConfigError

SIZES = {"dim_in": 6, "seq_len": 10, "dim_out": 8, "heads": 2}


def normalised(x: Tensor) -> Tensor:
    """LayerNorm with its fresh weights, 1 and 0."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_values_are_those_of_the_layers_written_out():
    aligner = PerceiverAligner(**SIZES, num_tokens=3, layers=2).double()
    features, table = torch.randn(1, 10, 6, dtype=torch.float64), torch.zeros(5, 8, dtype=torch.float64)
    latents = aligner.latents[0]
    for layer in aligner.layers:
        queries = normalised(latents)
        seen = torch.cat([normalised(features[0]), queries])
        weights, biases = layer.attention.in_proj_weight.chunk(3), layer.attention.in_proj_bias.chunk(3)
        q, k, v = (x @ w.T + b for x, w, b in zip((queries, seen, seen), weights, biases, strict=True))
        heads = [
            (q[:, part] @ k[:, part].T / math.sqrt(3)).softmax(-1) @ v[:, part] for part in (slice(0, 3), slice(3, 6))
        ]
        out = layer.attention.out_proj
        latents = latents + torch.cat(heads, 1) @ out.weight.T + out.bias
        latents = latents + layer.mlp[3](torch.nn.functional.gelu(layer.mlp[1](normalised(latents))))
    expected = aligner.project[1](normalised(latents))
    # float64: a few dozen sums of terms near 1, in another order
    torch.testing.assert_close(aligner(features, table)[0], expected, rtol=0, atol=1e-12)


def test_the_order_of_features_does_not_matter():
    """It has no positions of its own: encoders and `FrameSequence` bring them."""
    aligner, table = PerceiverAligner(**SIZES, num_tokens=3).double(), torch.zeros(5, 8, dtype=torch.float64)
    features = torch.randn(2, 10, 6, dtype=torch.float64)
    torch.testing.assert_close(aligner(features.flip(1), table), aligner(features, table), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "tokens"), [({"num_tokens": 64}, 64), ({"num_tokens": 1}, 1), ({"kernel": 4, "stride": 3}, 3)]
)
def test_tokens_are_counted_in_either_way(count, tokens):
    aligner = PerceiverAligner(**SIZES, **count)
    assert aligner.num_tokens == tokens
    assert aligner(torch.randn(2, 10, 6), torch.zeros(5, 8)).shape == (2, tokens, 8)


@pytest.mark.parametrize(
    "count",
    [
        {},
        {"kernel": 4},
        {"stride": 4},
        {"num_tokens": 5, "kernel": 4, "stride": 3},
        {"num_tokens": 5, "kernel": 4},
    ],
)
def test_no_way_or_two_ways_to_count_are_refused(count):
    with pytest.raises(ConfigError, match="give either kernel and stride, or num_tokens with null for both"):
        PerceiverAligner(**SIZES, **count)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_tokens": 0}, "num_tokens=0: expected at least 1"),
        ({"num_tokens": 3, "layers": 0}, "layers=0: expected at least 1"),
        ({"num_tokens": 3, "heads": 4}, "4 heads on a width of 6: .* 6 / 4 must be whole"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        PerceiverAligner(**SIZES | sizes)
