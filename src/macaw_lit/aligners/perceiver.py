"""A resampler: learned queries that look at all features and become the soft tokens, as in Flamingo."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from macaw_lit.aligners.base import Aligner, count_windows, head_width
from macaw_lit.errors import ConfigError


class PerceiverAligner(Aligner):
    """Latents attend to the features and to each other, layer by layer; a projection brings them to the LLM's width.

    Flamingo's resampler (arXiv 2204.14198, A.1.1) with the frames' positions already in the features. Unlike the
    aligners with a convolution, every token can see every position.

    Args:
        num_tokens: K, one learned latent each.
        kernel, stride: in place of `num_tokens`: as many tokens as a convolution of these sizes leaves, so that
            aligners can be exchanged and compared at the same length.
        layers: of cross-attention and perceptron.
        heads: must divide E.

    Raises:
        ConfigError: not exactly one way to count the tokens is given, or a size does not fit.
    """

    def __init__(
        self,
        dim_in: int,
        seq_len: int,
        dim_out: int,
        kernel: int | None = None,
        stride: int | None = None,
        num_tokens: int | None = None,
        layers: int = 2,
        heads: int = 8,
    ) -> None:
        super().__init__()
        head_width(dim_in, heads)
        if layers < 1:
            raise ConfigError(f"layers={layers}: expected at least 1, such as 2")
        self.num_tokens = _count(seq_len, kernel, stride, num_tokens)
        # Small, or what the latents bring drowns what they see (docs/log.md).
        self.latents = nn.Parameter(0.02 * torch.randn(1, self.num_tokens, dim_in))
        self.layers = nn.ModuleList(_Layer(dim_in, heads) for _ in range(layers))
        self.project = nn.Sequential(nn.LayerNorm(dim_in), nn.Linear(dim_in, dim_out))

    def forward(self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n k d"]:
        latents = self.latents.expand(len(features), -1, -1)  # [N, K, E]
        for layer in self.layers:
            latents = layer(latents, features)
        tokens: Tensor = self.project(latents)
        return tokens


class _Layer(nn.Module):
    """Pre-norm: latents + attention to features and latents, then + perceptron."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_latents = nn.LayerNorm(dim)
        self.norm_features = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, latents: Float[Tensor, "n k e"], features: Float[Tensor, "n s e"]) -> Float[Tensor, "n k e"]:
        queries = self.norm_latents(latents)
        seen = torch.cat([self.norm_features(features), queries], 1)  # [N, S + K, E]
        latents = latents + self.attention(queries, seen, seen, need_weights=False)[0]
        mixed: Tensor = latents + self.mlp(latents)
        return mixed


def _count(seq_len: int, kernel: int | None, stride: int | None, num_tokens: int | None) -> int:
    if num_tokens is None and kernel is not None and stride is not None:
        return count_windows(seq_len, kernel, stride)
    if num_tokens is None or kernel is not None or stride is not None:
        raise ConfigError(
            f"num_tokens={num_tokens}, kernel={kernel}, stride={stride}: give either kernel and stride, "
            "or num_tokens with null for both"
        )
    if num_tokens < 1:
        raise ConfigError(f"num_tokens={num_tokens}: expected at least 1")
    return num_tokens
