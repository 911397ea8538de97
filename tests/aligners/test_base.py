"""The compression of Eq. 3 against windows cut out by hand."""

import pytest
import torch

from macaw_lit.aligners.base import Compress
from macaw_lit.errors import ConfigError


def test_compress_is_a_projection_of_windows():
    compress = Compress(dim_in=3, seq_len=9, dim_out=5, kernel=4, stride=2).double()
    features = torch.randn(2, 9, 3, dtype=torch.float64)
    kernel = compress.conv.weight  # [E out, E in, positions]
    expected = torch.empty(2, 3, 5, dtype=torch.float64)
    for item in range(2):
        for token in range(3):
            window = features[item, 2 * token : 2 * token + 4]  # [4, E]
            summed = torch.stack([(kernel[channel].T * window).sum() for channel in range(3)]) + compress.conv.bias
            expected[item, token] = compress.linear.weight @ summed + compress.linear.bias
    # float64 sums of a dozen terms near 1, in another order
    torch.testing.assert_close(compress(features), expected, rtol=0, atol=1e-12)


def test_positions_that_no_window_covers_are_left_out():
    compress = Compress(dim_in=2, seq_len=11, dim_out=4, kernel=4, stride=3)
    features = torch.randn(1, 11, 2)
    changed = features.clone()
    changed[:, 10] = 99.0
    assert compress.num_tokens == 3
    assert torch.equal(compress(features), compress(changed))


def test_without_a_convolution_every_position_is_projected():
    compress = Compress(dim_in=3, seq_len=9, dim_out=5, kernel=None, stride=None)
    features = torch.randn(2, 9, 3)
    assert compress.num_tokens == 9
    assert set(compress.state_dict()) == {"linear.weight", "linear.bias"}
    assert torch.equal(compress(features), compress.linear(features))


@pytest.mark.parametrize(("kernel", "stride"), [(4, None), (None, 4)])
def test_half_a_convolution_is_refused(kernel, stride):
    with pytest.raises(ConfigError, match=f"kernel {kernel}, stride {stride}: give both"):
        Compress(dim_in=3, seq_len=9, dim_out=5, kernel=kernel, stride=stride)
