"""The aligner without attention: convolution and projection alone, as most later models have it."""

from jaxtyping import Float
from torch import Tensor

from macaw_lit.aligners.base import Aligner, Compress


class LinearAligner(Aligner):
    """Eq. 3 alone: soft tokens may lie anywhere in the embedding space. The baseline that shows what Eq. 4 adds."""

    def __init__(self, dim_in: int, seq_len: int, dim_out: int, kernel: int | None, stride: int | None) -> None:
        super().__init__()
        self.compress = Compress(dim_in, seq_len, dim_out, kernel, stride)
        self.num_tokens = self.compress.num_tokens

    def forward(self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n k d"]:
        tokens: Tensor = self.compress(features)
        return tokens
