"""The aligner of LLaVA-1.5 behind the paper's convolution: a perceptron of two layers on every token."""

from jaxtyping import Float
from torch import Tensor, nn

from macaw_lit.aligners.base import Aligner, Compress


class MLPAligner(Aligner):
    """Linear(GELU(Linear(Conv1D(h)))): Eq. 3 and one more layer, not reading the table (arXiv 2310.03744)."""

    def __init__(self, dim_in: int, seq_len: int, dim_out: int, kernel: int | None, stride: int | None) -> None:
        super().__init__()
        self.compress = Compress(dim_in, seq_len, dim_out, kernel, stride)
        self.num_tokens = self.compress.num_tokens
        self.second = nn.Sequential(nn.GELU(), nn.Linear(dim_out, dim_out))

    def forward(self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n k d"]:
        tokens: Tensor = self.second(self.compress(features))
        return tokens
