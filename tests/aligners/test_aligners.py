"""What every aligner keeps: K tokens per item from its own features alone, any number of items, no lost gradients."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from macaw_lit.aligners.base import Aligner
from macaw_lit.aligners.linear import LinearAligner
from macaw_lit.aligners.macaw import MacawAligner
from macaw_lit.aligners.macaw_mha import MacawMHAAligner
from macaw_lit.aligners.mlp import MLPAligner
from macaw_lit.aligners.perceiver import PerceiverAligner
from macaw_lit.errors import ConfigError

ALIGNERS = {
    "linear": LinearAligner,
    "macaw": MacawAligner,
    "macaw_qk_norm": partial(MacawAligner, qk_norm=True),
    "macaw_matched": partial(MacawAligner, qk_norm=True, match_scale=True),
    "macaw_residual": partial(MacawAligner, residual=True),
    "macaw_mha": partial(MacawMHAAligner, heads=4),  # absorbs up to two queries of width 8, projects for more
    "mlp": MLPAligner,
    "perceiver": partial(PerceiverAligner, heads=2),
}
LOOKS_EVERYWHERE = {"perceiver"}


@pytest.fixture(params=ALIGNERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Aligner]:
    return partial(ALIGNERS[request.param], dim_in=6, seq_len=10, dim_out=8)


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(50, 8, requires_grad=True)


@pytest.mark.parametrize(
    ("seq_len", "kernel", "stride", "tokens"),
    [(196, 48, 36, 5), (1500, 240, 220, 6), (1176, 36, 30, 39), (10, 10, 1, 1), (10, 1, 1, 10)],
)
def test_as_many_tokens_as_it_says(make, table, seq_len, kernel, stride, tokens):
    aligner = make(seq_len=seq_len, kernel=kernel, stride=stride)
    assert aligner.num_tokens == tokens
    assert aligner(torch.randn(2, seq_len, 6), table).shape == (2, tokens, 8)


@pytest.mark.parametrize(("kernel", "stride"), [(11, 1), (0, 1), (4, 0), (4, -1)])
def test_a_kernel_that_does_not_fit_is_refused_with_the_numbers(make, kernel, stride):
    with pytest.raises(ConfigError, match=rf"kernel {kernel}, stride {stride} on 10 positions.*1 <= kernel <= 10"):
        make(kernel=kernel, stride=stride)


def test_an_item_does_not_depend_on_the_others(make, table):
    aligner = make(kernel=4, stride=3)
    features = torch.randn(5, 10, 6)
    together = aligner(features, table)
    for item in range(5):
        # Batched and single matrix products may sum in another order: a few ulp of values near 1.
        torch.testing.assert_close(aligner(features[[item]], table)[0], together[item], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(aligner(features.flip(0), table), together.flip(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", sorted(ALIGNERS.keys() - LOOKS_EVERYWHERE), indirect=True)
def test_each_token_sees_its_window_and_nothing_else(make, table):
    aligner = make(kernel=4, stride=3)
    features = torch.randn(1, 10, 6)
    changed = features.clone()
    changed[:, 4:6] += 1  # inside the second window of three: 0–3, 3–6, 6–9
    difference = (aligner(changed, table) - aligner(features, table))[0].abs().amax(1)
    assert (difference > 1e-3).tolist() == [False, True, False]


@pytest.mark.parametrize("make", sorted(LOOKS_EVERYWHERE), indirect=True)
def test_each_token_sees_every_position(make, table):
    aligner = make(kernel=4, stride=3)
    features = torch.randn(1, 10, 6, requires_grad=True)
    for token in range(3):
        (seen,) = torch.autograd.grad(aligner(features, table)[0, token].sum(), features)
        assert (seen.abs().amax(2) > 0).all()


def test_tokens_of_one_item_differ(make, table):
    tokens = make(kernel=4, stride=3)(torch.randn(1, 10, 6), table)[0]
    assert torch.pdist(tokens).min() > 1e-3


def test_no_items_give_no_tokens_and_zero_gradients(make, table):
    aligner = make(kernel=4, stride=3)
    tokens = aligner(torch.zeros(0, 10, 6), table)
    assert tokens.shape == (0, 3, 8)
    tokens.sum().backward()
    for name, parameter in aligner.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_every_parameter_learns_from_an_item(make, table):
    aligner = make(kernel=4, stride=3)
    (aligner(torch.randn(2, 10, 6), table) ** 2).sum().backward()
    for name, parameter in aligner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_half_precision_stays_half_precision(make, table):
    aligner = make(kernel=4, stride=3)
    features = torch.randn(2, 10, 6)
    exact = aligner(features, table)
    tokens = aligner.bfloat16()(features.bfloat16(), table.bfloat16())
    assert tokens.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: some ten roundings of values up to 3
    torch.testing.assert_close(tokens.float(), exact, rtol=0.05, atol=0.05)


def test_weights_come_back_to_the_bit(make, table):
    aligner, features = make(kernel=4, stride=3), torch.randn(2, 10, 6)
    torch.manual_seed(9)
    again = make(kernel=4, stride=3)
    assert not torch.equal(again(features, table), aligner(features, table))
    again.load_state_dict(aligner.state_dict())
    assert torch.equal(again(features, table), aligner(features, table))


def test_weights_on_the_table_can_be_looked_at(make, table):
    aligner = make(kernel=4, stride=3)
    weights = aligner.weights(torch.randn(2, 10, 6), table)
    if weights is None:
        return
    items, heads, tokens, entries = weights.shape
    assert (items, tokens) == (2, 3)
    assert entries >= len(table)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, heads, 3))


def test_an_aligner_without_weights_does_not_read_the_table(make, table):
    aligner, features = make(kernel=4, stride=3), torch.randn(2, 10, 6)
    reads = not torch.equal(aligner(features, table), aligner(features, 2 * table))
    assert reads == (aligner.weights(features, table) is not None)


def test_it_can_be_laid_out_without_memory(make):
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in make(kernel=4, stride=3).parameters())
