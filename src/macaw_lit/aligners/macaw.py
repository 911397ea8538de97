"""The paper's aligner: soft tokens are attention-weighted means of the LLM's own word embeddings (Eq. 3 and 4)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from macaw_lit.aligners.base import Aligner, Compress


class MacawAligner(Aligner):
    """h' = Linear(Conv1D(h)), then softmax(h' Eᵀ / √D) E over the whole embedding table E, without projections.

    The table is shared by all items of the call: the items' queries are folded into one query axis, so the table is
    read once and never repeated.

    Args:
        qk_norm: compare directions instead of raw vectors: queries and keys are divided by their root mean square, and
            the scores multiplied by a learned temperature. Values stay E. The exact form starts with almost uniform
            attention wherever embeddings are small, so that all inputs give nearly the same token (docs/log.md).
        residual: add h' itself, as if to a transformer's attention; soft tokens are then no mean of words any more.
        match_scale: give every soft token the root mean square of the table. A mean of many embeddings is far smaller
            than one of them, and beside the words of the prompt it is hardly heard.
    """

    def __init__(
        self,
        dim_in: int,
        seq_len: int,
        dim_out: int,
        kernel: int | None,
        stride: int | None,
        qk_norm: bool = False,
        residual: bool = False,
        match_scale: bool = False,
    ) -> None:
        super().__init__()
        self.compress = Compress(dim_in, seq_len, dim_out, kernel, stride)
        self.num_tokens = self.compress.num_tokens
        self.residual = residual
        self.match_scale = match_scale
        self.log_temperature = nn.Parameter(torch.zeros(())) if qk_norm else None

    def forward(self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n k d"]:
        tokens: Tensor = self.compress(features)  # [N, K, D]
        aligned = self._attention(tokens, table) @ table
        if self.residual:
            aligned = aligned + tokens
        if self.match_scale:
            # Squares of embeddings are too small for fp16.
            exact = torch.promote_types(table.dtype, torch.float32)
            scale = torch.linalg.vector_norm(table.detach(), dtype=exact) * table.numel() ** -0.5
            aligned = F.rms_norm(aligned, aligned.shape[-1:], eps=1e-12) * scale.to(table.dtype)
        return aligned

    def weights(self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n 1 k v"]:
        return self._attention(self.compress(features), table)[:, None]

    def _attention(self, tokens: Float[Tensor, "n k d"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n k v"]:
        queries, keys = tokens, table
        if self.log_temperature is not None:
            queries = F.rms_norm(queries, queries.shape[-1:]) * self.log_temperature.exp()
            keys = F.rms_norm(keys, keys.shape[-1:])
        # One head as wide as the table: fused attention has nothing to save, and is slower (docs/benchmarks.md).
        return (queries * keys.shape[-1] ** -0.5 @ keys.T).softmax(-1)
