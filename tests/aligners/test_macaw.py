"""The paper's aligner against Eq. 4 written out longhand, values and gradients."""

import math

import pytest
import torch
from torch import Tensor

from macaw_lit.aligners.macaw import MacawAligner

SIZES = {"dim_in": 6, "seq_len": 10, "dim_out": 8, "kernel": 4, "stride": 3}
TOLERANCE = {"rtol": 0, "atol": 1e-12}  # both sides in float64, a few hundred terms near 1 summed in another order
SCALED = {"rtol": 0, "atol": 1e-9}  # rms_norm adds 1e-12 to mean squares that are 0.01 and more here


def equation_4(hidden: Tensor, table: Tensor) -> Tensor:
    """softmax(h' Eᵀ / √D) E of one item, term by term: hidden [K, D], table [V, D] → [K, D]."""
    rows = []
    for query in hidden:
        scores = torch.stack([(query * word).sum() / math.sqrt(len(query)) for word in table])
        weights = (scores - scores.max()).exp()
        rows.append(sum(weight * word for weight, word in zip(weights / weights.sum(), table, strict=True)))
    return torch.stack(rows)


def rms(vectors: Tensor) -> Tensor:
    return (vectors**2).mean(-1, keepdim=True).sqrt()


def normalised_equation_4(hidden: Tensor, table: Tensor, temperature: Tensor) -> Tensor:
    """As `equation_4`, with scores temperature · (h'/rms(h')) · (e/rms(e)) / √D; values stay E."""
    scores = temperature * (hidden / rms(hidden)) @ (table / rms(table)).T / math.sqrt(table.shape[1])
    return scores.softmax(-1) @ table


def gradients(value: Tensor, weighting: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((value * weighting).sum(), leaves))


@pytest.mark.parametrize("match_scale", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_values_and_gradients_are_those_of_the_formula(qk_norm, residual, match_scale):
    tolerance = SCALED if match_scale else TOLERANCE
    aligner = MacawAligner(**SIZES, qk_norm=qk_norm, residual=residual, match_scale=match_scale).double()
    features = torch.randn(3, 10, 6, dtype=torch.float64, requires_grad=True)
    table = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    hidden = aligner.compress(features)  # Eq. 3, whose longhand is in test_base.py
    if qk_norm:
        torch.nn.init.constant_(aligner.log_temperature, math.log(2.5))
        temperature = aligner.log_temperature.exp()
        expected = torch.stack([normalised_equation_4(item, table, temperature) for item in hidden])
    else:
        expected = torch.stack([equation_4(item, table) for item in hidden])
    if residual:
        expected = expected + hidden
    if match_scale:  # the scale of the table is a measure, not something to be learned through
        expected = expected / rms(expected) * rms(table.detach().flatten())
    tokens = aligner(features, table)
    torch.testing.assert_close(tokens, expected, **tolerance)
    leaves = [features, table, *aligner.parameters()]
    weighting = torch.randn_like(tokens)
    for found, wanted in zip(gradients(tokens, weighting, leaves), gradients(expected, weighting, leaves), strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_in_16_bit_tokens_keep_the_scale_of_a_table_whose_squares_have_no_place_there(dtype, size):
    aligner = MacawAligner(**SIZES, match_scale=True).to(dtype)
    features, table = torch.randn(2, 10, 6).to(dtype), (size * torch.randn(500, 8)).to(dtype)
    found, wanted = rms(aligner(features, table).float()), rms(table.float().flatten())
    assert (found / wanted - 1).abs().max() < 0.01, "scale and values are rounded to 8 bits at worst"


def test_folding_equals_a_table_repeated_for_every_item():
    aligner = MacawAligner(**SIZES).double()
    features, table = torch.randn(4, 10, 6, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    hidden = aligner.compress(features)
    copies = table.expand(4, -1, -1)  # as the original does it: the whole table once per row
    scores = torch.bmm(hidden, copies.transpose(1, 2)) / math.sqrt(8)
    torch.testing.assert_close(aligner(features, table), torch.bmm(scores.softmax(-1), copies), **TOLERANCE)


def test_tokens_are_means_of_the_table():
    aligner = MacawAligner(**SIZES)
    table = torch.randn(30, 8)
    tokens = aligner(torch.randn(4, 10, 6) * 100, table)
    assert (tokens <= table.amax(0) + 1e-5).all()
    assert (tokens >= table.amin(0) - 1e-5).all()
    constant = torch.full((30, 8), 0.7)
    torch.testing.assert_close(aligner(torch.randn(4, 10, 6), constant), torch.full((4, 3, 8), 0.7))


def test_small_embeddings_make_the_exact_form_uniform_and_not_the_normalised_one():
    features, table = torch.randn(2, 10, 6), torch.randn(30, 8) * 1e-3
    exact = MacawAligner(**SIZES)(features, table)
    sharp = MacawAligner(**SIZES, qk_norm=True)
    torch.nn.init.constant_(sharp.log_temperature, math.log(5))
    spread = table.std()
    torch.testing.assert_close(exact, table.mean(0).expand_as(exact), rtol=0, atol=float(0.02 * spread))
    assert (sharp(features, table) - table.mean(0)).std() > 0.2 * spread


def test_matched_tokens_are_as_large_as_embeddings_and_keep_their_direction():
    features, table = torch.randn(2, 10, 6), torch.randn(300, 8)
    plain, matched = MacawAligner(**SIZES, qk_norm=True), MacawAligner(**SIZES, qk_norm=True, match_scale=True)
    matched.load_state_dict(plain.state_dict())
    means, tokens = plain(features, table), matched(features, table)
    assert (rms(means) < 0.5).all(), "a mean of many embeddings is small"
    # rms_norm adds 1.2e-7 to mean squares that are 3e-3 here.
    torch.testing.assert_close(rms(tokens), table.square().mean().sqrt().expand(2, 3, 1), rtol=1e-4, atol=0)
    assert (torch.cosine_similarity(means, tokens, dim=-1) > 1 - 1e-5).all()


def test_the_temperature_starts_at_one_and_belongs_to_the_normalised_form_alone():
    assert MacawAligner(**SIZES).log_temperature is None
    aligner = MacawAligner(**SIZES, qk_norm=True)
    assert aligner.log_temperature.exp().item() == 1.0
    assert "log_temperature" in dict(aligner.named_parameters())
    assert MacawAligner(**SIZES, match_scale=True).state_dict().keys() == MacawAligner(**SIZES).state_dict().keys()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_weights_to_look_at_are_those_that_the_tokens_are_made_of(qk_norm):
    aligner = MacawAligner(**SIZES, qk_norm=qk_norm).double()
    features, table = torch.randn(4, 10, 6, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
    weights = aligner.weights(features, table)  # [N, 1, K, V]
    torch.testing.assert_close(weights[:, 0] @ table, aligner(features, table), **TOLERANCE)
