"""The original code's attention against `nn.MultiheadAttention` with the table repeated for every row."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from macaw_lit.aligners.macaw_mha import MacawMHAAligner, TableAttention
from macaw_lit.errors import ConfigError

HEADS, ITEMS, TOKENS, VOCABULARY, WIDTH = 4, 3, 5, 40, 24
# float32: sums over 40 words of width 24 in another order; worst of 200 draws: 7e-7.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
FORMS = ["_absorbed", "_projected"]


def pair(dropout: float = 0.0) -> tuple[TableAttention, nn.MultiheadAttention]:
    """Ours and the library's with the same weights, biases away from zero."""
    library = nn.MultiheadAttention(
        WIDTH, HEADS, dropout=dropout, add_bias_kv=True, add_zero_attn=True, batch_first=True
    )
    for bias in (library.in_proj_bias, library.out_proj.bias):
        nn.init.normal_(bias)
    ours = TableAttention(WIDTH, HEADS, dropout)
    ours.load_state_dict(library.state_dict())  # strict: same names, same shapes
    return ours, library


def repeated(library: nn.MultiheadAttention, queries: Tensor, table: Tensor) -> Tensor:
    copies = table[None].repeat(len(queries), 1, 1)
    return library(queries, copies, copies, need_weights=False)[0]


def force(attention: TableAttention, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "absorbs", lambda queries: form == "_absorbed")


# By norm, in float32. Over 200 draws the worst distance between the two is 2e-6, on gradients of the queries, where the
# library itself is 1.9e-6 away from float64 and the absorbed form 0.4e-6; this draw is one of the better ones.
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_library(form, dtype, allowed, monkeypatch):
    ours, library = (module.to(dtype) for module in pair())
    force(ours, form, monkeypatch)
    queries = torch.randn(ITEMS, TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    table = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    found = ours(queries.flatten(0, 1), table).view_as(queries)
    wanted = repeated(library, queries, table)
    assert (found - wanted).norm() < allowed * wanted.norm()
    weighting = torch.randn_like(wanted)
    names = sorted(dict(library.named_parameters()))
    gradients = [
        torch.autograd.grad((value * weighting).sum(), [queries, table, *map(module.get_parameter, names)])
        for value, module in ((found, ours), (wanted, library))
    ]
    for name, one, other in zip(["queries", "table", *names], *gradients, strict=True):
        assert (one - other).norm() < allowed * other.norm(), name


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_formula_written_out(form, monkeypatch):
    ours, _ = pair()
    ours.double()
    force(ours, form, monkeypatch)
    queries, table = torch.randn(2, WIDTH, dtype=torch.float64), torch.randn(VOCABULARY, WIDTH, dtype=torch.float64)
    (w_q, w_k, w_v), (b_q, b_k, b_v) = ours.in_proj_weight.chunk(3), ours.in_proj_bias.chunk(3)
    width = WIDTH // HEADS
    expected = []
    for query in queries:
        heads = []
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            keys = [*((w_k @ word + b_k)[part] for word in table), ours.bias_k[0, 0, part], torch.zeros(width)]
            values = [*((w_v @ word + b_v)[part] for word in table), ours.bias_v[0, 0, part], torch.zeros(width)]
            scores = torch.stack([(w_q @ query + b_q)[part] @ key.double() / width**0.5 for key in keys])
            weights = scores.exp() / scores.exp().sum()
            heads.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
        expected.append(ours.out_proj.weight @ torch.cat(heads) + ours.out_proj.bias)
    # float64: sums over 42 entries of width 24 in another order
    torch.testing.assert_close(ours(queries, table), torch.stack(expected), rtol=0, atol=1e-12)


def test_weights_are_those_of_the_library():
    ours, library = pair()
    queries, table = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    copies = table[None]
    _, wanted = library(queries[None], copies, copies, average_attn_weights=False)
    torch.testing.assert_close(ours.weights(queries, table), wanted[0], **TOLERANCE)


def test_the_cheaper_form_is_chosen_by_shape():
    attention = TableAttention(32, heads=4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels are not counted
        costs = {}
        for rows in (1, 10, 11, 40):
            for form in FORMS:
                before = counter.get_total_flops()
                getattr(attention, form)(torch.randn(rows, 32), torch.randn(5000, 32))
                costs[rows, form] = counter.get_total_flops() - before
    for rows in (1, 10, 11, 40):
        cheaper = costs[rows, "_absorbed"] < costs[rows, "_projected"]
        assert attention.absorbs(rows) == cheaper, rows
    assert attention.absorbs(10)
    assert not attention.absorbs(11)  # 11 · 3 > 32


@pytest.mark.parametrize("form", FORMS)
def test_the_table_is_never_repeated(form, monkeypatch):
    ours, _ = pair()
    force(ours, form, monkeypatch)
    biggest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal biggest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                biggest = max(biggest, result.numel())
            return result

    table = torch.randn(1000, WIDTH)
    with Watch():
        ours(torch.randn(ITEMS * 2, WIDTH), table).sum().backward()
    assert biggest <= 1002 * WIDTH, "H·Q = 24 rows of weights, or one row of keys per word"


@pytest.mark.parametrize("form", FORMS)
def test_dropout_acts_in_training_alone_and_keeps_the_mean(form, monkeypatch):
    ours, _ = pair(dropout=0.5)
    force(ours, form, monkeypatch)
    queries, table = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    still = ours.eval()(queries, table)
    assert torch.equal(still, ours(queries, table))
    ours.train()
    drawn = torch.stack([ours(queries, table) for _ in range(1000)])
    assert drawn.std(0).mean() > 0.05
    error = (drawn.mean(0) - still).abs() / (drawn.std(0) / 1000**0.5)
    assert error.max() < 5, "120 means within five standard errors"


@pytest.mark.parametrize("heads", [0, -2, 5, 220])
def test_heads_that_do_not_divide_are_refused_with_the_arithmetic(heads):
    with pytest.raises(ConfigError, match=rf"{heads} heads on a width of 24: .* 24 / {heads} must be whole"):
        MacawMHAAligner(dim_in=6, seq_len=10, dim_out=24, kernel=4, stride=3, heads=heads)


def test_items_are_folded_into_the_queries():
    aligner = MacawMHAAligner(dim_in=6, seq_len=10, dim_out=24, kernel=4, stride=3, heads=4)
    library = nn.MultiheadAttention(24, 4, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    library.load_state_dict(aligner.attention.state_dict())
    features, table = torch.randn(ITEMS, 10, 6), torch.randn(VOCABULARY, 24)
    wanted = repeated(library, aligner.compress(features), table)
    torch.testing.assert_close(aligner(features, table), wanted, **TOLERANCE)


def test_mixed_precision_gives_both_forms_the_same_tokens(monkeypatch):
    ours, _ = pair()
    queries, table = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    exact = ours(queries, table)
    for form in FORMS:
        force(ours, form, monkeypatch)
        with torch.autocast("cpu", torch.bfloat16):
            found = ours(queries, table)
        assert found.dtype == torch.bfloat16
        # bfloat16 keeps 8 bits: a few roundings of values up to 2
        torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.05)
