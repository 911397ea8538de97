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

    def weights(
        self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]
    ) -> Float[Tensor, "n h k words"] | None:
        """For inspection: what each head attends to, table rows first; None if the aligner does not attend to words.

        All weights lie in memory, n·h·K·V numbers, which `forward` avoids where it can.
        """
        return None


def head_width(dim: int, heads: int) -> int:
    """The share of `dim` that each head has.

    Raises:
        ConfigError: the heads do not divide it.
    """
    if heads < 1 or dim % heads:
        raise ConfigError(
            f"{heads} heads on a width of {dim}: the width of a head = {dim} / {heads} must be whole; "
            "give a divisor of the width, such as 8 or 16"
        )
    return dim // heads


def count_windows(seq_len: int, kernel: int, stride: int) -> int:
    """Tokens that a convolution without padding leaves: (positions - kernel) // stride + 1.

    Raises:
        ConfigError: the kernel is longer than the sequence, or a size is not positive.
    """
    if not 1 <= kernel <= seq_len or stride < 1:
        raise ConfigError(
            f"kernel {kernel}, stride {stride} on {seq_len} positions: tokens = (positions - kernel) // stride + 1 "
            f"needs 1 <= kernel <= {seq_len} and stride >= 1"
        )
    return (seq_len - kernel) // stride + 1


class Compress(nn.Module):
    """Eq. 3 of the paper, h' = Linear(Conv1D(h)): the sequence to a small fixed length, the width to the LLM's.

    Args:
        kernel, stride: of the convolution over positions, without padding; E channels in and out. Both None leave the
            convolution out: every position becomes a token, as frames do in the original's first versions.

    Raises:
        ConfigError: the kernel is longer than the sequence, or only one of the two is given.
    """

    def __init__(self, dim_in: int, seq_len: int, dim_out: int, kernel: int | None, stride: int | None) -> None:
        super().__init__()
        if kernel is not None and stride is not None:
            self.num_tokens = count_windows(seq_len, kernel, stride)
            self.conv: nn.Conv1d | None = nn.Conv1d(dim_in, dim_in, kernel, stride)
        elif kernel is None and stride is None:
            self.num_tokens = seq_len
            self.conv = None
        else:
            raise ConfigError(f"kernel {kernel}, stride {stride}: give both, or null for both to leave it out")
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, features: Float[Tensor, "n s e"]) -> Float[Tensor, "n k d"]:
        if self.conv is not None:
            features = self.conv(features.transpose(1, 2)).transpose(1, 2)  # [N, K, E]
        projected: Tensor = self.linear(features)
        return projected
