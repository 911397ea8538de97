"""The seam between an encoder's features and the LLM's embeddings, and the compression most aligners begin with."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from macaw_lit.errors import ConfigError


class Aligner(nn.Module, ABC):
    """Turns the features of an item into K soft tokens. Built with `dim_in` = E, `seq_len` = S and `dim_out` = D.

    Attributes:
        num_tokens: K, fixed for every item.
    """

    num_tokens: int

    @abstractmethod
    def forward(self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n k d"]:
        """Align `n` items, `n` ≥ 0; `table` is the LLM's whole input embedding matrix."""


class Compress(nn.Module):
    """Eq. 3 of the paper, h' = Linear(Conv1D(h)): the sequence to a small fixed length, the width to the LLM's.

    Args:
        kernel, stride: of the convolution over positions, without padding; E channels in and out.

    Raises:
        ConfigError: the kernel is longer than the sequence.
    """

    def __init__(self, dim_in: int, seq_len: int, dim_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        if not 1 <= kernel <= seq_len or stride < 1:
            raise ConfigError(
                f"kernel {kernel}, stride {stride} on {seq_len} positions: tokens = (positions - kernel) // stride + 1 "
                f"needs 1 <= kernel <= {seq_len} and stride >= 1"
            )
        self.num_tokens = (seq_len - kernel) // stride + 1
        self.conv = nn.Conv1d(dim_in, dim_in, kernel, stride)
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, features: Float[Tensor, "n s e"]) -> Float[Tensor, "n k d"]:
        compressed: Tensor = self.conv(features.transpose(1, 2))  # [N, E, K]
        projected: Tensor = self.linear(compressed.transpose(1, 2))
        return projected
