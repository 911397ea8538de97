"""Figures of alignment health on aligners whose attention and outputs are known, and on a whole model."""

import itertools
import math

import pytest
import torch
from torch import nn

from macaw_lit.aligners.linear import LinearAligner
from macaw_lit.aligners.macaw import MacawAligner
from macaw_lit.aligners.macaw_mha import MacawMHAAligner
from macaw_lit.health import alignment_health, gradient_shares, model_health, watched

SIZES = {"dim_in": 6, "seq_len": 10, "dim_out": 8, "kernel": 4, "stride": 3}


@torch.no_grad()
def test_figures_are_those_of_their_definitions():
    aligner, features, table = MacawAligner(**SIZES), 5 * torch.randn(4, 10, 6), torch.randn(50, 8)
    health = alignment_health(aligner, features, table)
    scores = aligner.compress(features) @ table.T / math.sqrt(8)
    entropies = [torch.distributions.Categorical(logits=row).entropy() for row in scores.flatten(0, 1)]
    tokens = scores.softmax(-1) @ table
    pairs = itertools.combinations(range(4), 2)
    cosines = [nn.functional.cosine_similarity(tokens[one], tokens[other], dim=-1).mean() for one, other in pairs]
    assert health.keys() == {"entropy", "cosine", "norm_ratio"}
    # float32 sums over 50 words
    assert health["entropy"] == pytest.approx(float(torch.stack(entropies).mean()) / math.log(50), rel=1e-5)
    assert health["cosine"] == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
    assert health["norm_ratio"] == pytest.approx(float((tokens**2).mean().sqrt() / (table**2).mean().sqrt()), rel=1e-5)


def test_a_tiny_table_is_seen_as_collapse():
    health = alignment_health(MacawAligner(**SIZES), torch.randn(4, 10, 6), 1e-3 * torch.randn(500, 8))
    assert health["entropy"] == pytest.approx(1, abs=1e-6)
    assert health["cosine"] > 0.9999
    assert health["norm_ratio"] < 0.2


def test_attention_on_one_word_has_no_entropy():
    aligner, table = MacawAligner(**SIZES), torch.eye(8)
    nn.init.zeros_(aligner.compress.linear.weight)
    with torch.no_grad():
        aligner.compress.linear.bias.copy_(1000 * table[3])
    health = alignment_health(aligner, torch.randn(4, 10, 6), table)
    assert health["entropy"] == pytest.approx(0, abs=1e-6)
    assert health["cosine"] == pytest.approx(1, abs=1e-6)
    assert health["norm_ratio"] == pytest.approx(1, abs=1e-6)


def test_heads_and_extra_keys_count():
    aligner = MacawMHAAligner(**SIZES, heads=2)
    nn.init.zeros_(aligner.attention.in_proj_weight)
    health = alignment_health(aligner, torch.randn(4, 10, 6), torch.randn(50, 8))
    assert health["entropy"] == pytest.approx(1, abs=1e-6), "uniform over 50 words, the learned key and the zero key"


@pytest.mark.parametrize(("items", "figures"), [(0, set()), (1, {"norm_ratio"}), (2, {"norm_ratio", "cosine"})])
def test_what_cannot_be_told_is_left_out(items, figures):
    health = alignment_health(LinearAligner(**SIZES), torch.randn(items, 10, 6), torch.randn(50, 8))
    assert health.keys() == figures


def test_opposite_inputs_are_opposite():
    aligner, features = LinearAligner(**SIZES), torch.randn(1, 10, 6)
    for bias in (aligner.compress.conv.bias, aligner.compress.linear.bias):
        nn.init.zeros_(bias)
    health = alignment_health(aligner, torch.cat([features, -features]), torch.randn(50, 8))
    assert health["cosine"] == pytest.approx(-1, abs=1e-6)


def test_watching_takes_each_call_as_it_is_and_stops(model, make_batch):
    batch = make_batch(model, [(1, {"image": 2}), (2, {"audio": 1}), (3, {})])
    with watched(model) as found:
        watched_nll = model(batch).nll
    assert found.keys() == {"image", "audio"}, "no video in the batch"
    features = model.encode(batch.media)
    for kind in found:
        aligner = model.modalities[kind].aligner
        assert found[kind] == alignment_health(aligner, features[kind], model.llm.table)
        assert not aligner._forward_hooks
    assert torch.equal(model(batch).nll, watched_nll)


def test_gradient_shares_are_norms_by_part(model, make_batch):
    assert gradient_shares(model) == {}
    batch = make_batch(model, [(1, {"image": 2}), (2, {"audio": 1})])
    model(batch).nll.backward()

    def norm(part: nn.Module) -> float:
        return math.sqrt(sum(float((p.grad**2).sum()) for p in part.parameters() if p.grad is not None))

    shares = gradient_shares(model)
    assert shares.keys() == {"image", "video", "audio"}
    for kind, encoder in (("image", "vision"), ("video", "vision"), ("audio", "hearing")):
        aligner = model.modalities[kind].aligner
        assert shares[kind]["aligner_gradient"] == pytest.approx(norm(aligner) / norm(model), rel=1e-5)
        assert shares[kind]["encoder_gradient"] == pytest.approx(norm(model.encoders[encoder]) / norm(model), rel=1e-5)
    assert shares["video"]["aligner_gradient"] == 0
    assert 0 < shares["image"]["aligner_gradient"] < 1


def test_the_health_of_a_model_is_all_of_it_and_leaves_no_gradients(model, make_batch):
    health = model_health(model, make_batch(model, [(1, {"image": 2}), (2, {"audio": 1})]))
    assert health["image"].keys() == {"entropy", "cosine", "norm_ratio", "aligner_gradient", "encoder_gradient"}
    assert health["audio"].keys() == {"entropy", "norm_ratio", "aligner_gradient", "encoder_gradient"}
    assert all(parameter.grad is None for parameter in model.parameters())
