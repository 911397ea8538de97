"""The linear aligner is Eq. 3 and nothing more."""

import torch

from macaw_lit.aligners.linear import LinearAligner


def test_tokens_are_linear_in_the_features_and_do_not_read_the_table():
    aligner = LinearAligner(dim_in=6, seq_len=10, dim_out=8, kernel=4, stride=3).double()
    first, second = torch.randn(2, 3, 10, 6, dtype=torch.float64)
    table = torch.randn(20, 8, dtype=torch.float64)
    bias = aligner(torch.zeros_like(first), table)
    combined = aligner(2 * first - 3 * second, table) - bias
    apart = 2 * (aligner(first, table) - bias) - 3 * (aligner(second, table) - bias)
    # float64: two hundred terms near 1, summed in another order
    torch.testing.assert_close(combined, apart, rtol=0, atol=1e-12)
    assert torch.equal(aligner(first, table), aligner(first, torch.full_like(table, torch.nan)))


def test_it_has_the_weights_of_the_compression_alone():
    aligner = LinearAligner(dim_in=6, seq_len=10, dim_out=8, kernel=4, stride=3)
    assert set(aligner.state_dict()) == {
        "compress.conv.weight",
        "compress.conv.bias",
        "compress.linear.weight",
        "compress.linear.bias",
    }
