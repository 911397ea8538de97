"""The original code's aligner: multi-head attention over the embedding table, with projections and two extra keys."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from macaw_lit.aligners.base import Aligner, Compress, head_width


class TableAttention(nn.Module):
    """`nn.MultiheadAttention(dim, heads, add_bias_kv=True, add_zero_attn=True)` whose keys and values are one table.

    Parameters have that module's names and shapes. The softmax runs over V + 2 entries: the table's rows, a learned
    key with its value, and a zero key with a zero value. All queries of a call share one axis, and the table is never
    repeated. Two forms give the same result, and the cheaper one is chosen by shape:

    - projected: keys and values of the whole table once, 4·V·D² operations, then scaled dot-product attention;
    - absorbed: W_k folded into the queries and W_v applied after the weighted sum, (q W_k) Eᵀ and (p E) W_vᵀ, so that
      the table is read as it is, but at full width by each head.

    Args:
        dim: D, of queries and table.
        heads: H, must divide D.
        dropout: on the attention weights, in training.

    Raises:
        ConfigError: the heads do not divide the width.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = head_width(dim, heads) ** -0.5
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.bias_k = nn.Parameter(torch.empty(1, 1, dim))
        self.bias_v = nn.Parameter(torch.empty(1, 1, dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_normal_(self.bias_k)
        nn.init.xavier_normal_(self.bias_v)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Float[Tensor, "q d"], table: Float[Tensor, "v d"]) -> Float[Tensor, "q d"]:
        attend = self._absorbed if self.absorbs(len(queries)) else self._projected
        mixed: Tensor = self.out_proj(attend(queries, table).transpose(0, 1).flatten(1))
        return mixed

    def absorbs(self, queries: int) -> bool:
        """Whether the absorbed form costs less: 4·H·Q·V·D operations against 4·V·D² + 4·Q·V·D."""
        return queries * (self.heads - 1) < self.in_proj_weight.shape[1]

    def weights(self, queries: Float[Tensor, "q d"], table: Float[Tensor, "v d"]) -> Float[Tensor, "h q v+2"]:
        """Attention weights: on the table's rows, then on the learned key, then on the zero key."""
        _, w_k, _ = self._by_head(self.in_proj_weight)  # [H, D/H, D]
        _, b_k, _ = self._by_head(self.in_proj_bias[:, None])  # [H, D/H, 1]
        scaled = self._queries(queries) * self.scale
        # The key bias moves all scores of the table alike, which softmax cannot see; so the other two move instead.
        learned = scaled @ (self._split(self.bias_k[0].T) - b_k)
        scores = torch.cat([(scaled @ w_k) @ table.T, learned, -(scaled @ b_k)], -1)
        return scores.softmax(-1)

    def _absorbed(self, queries: Tensor, table: Tensor) -> Float[Tensor, "h q e"]:
        _, _, w_v = self._by_head(self.in_proj_weight)
        _, _, b_v = self._by_head(self.in_proj_bias[:, None])
        weights = F.dropout(self.weights(queries, table), self.dropout, self.training)
        words, learned, _ = weights.split((len(table), 1, 1), -1)
        values = (words @ table) @ w_v.mT + words.sum(-1, keepdim=True) * b_v.mT
        return values + learned * self._split(self.bias_v[0].T).mT

    def _projected(self, queries: Tensor, table: Tensor) -> Float[Tensor, "h q e"]:
        _, w_k, w_v = self.in_proj_weight.chunk(3)
        _, b_k, b_v = self.in_proj_bias.chunk(3)
        nothing = torch.zeros_like(self.bias_k[0])
        keys = torch.cat([F.linear(table, w_k, b_k), self.bias_k[0], nothing])  # [V + 2, D]
        values = torch.cat([F.linear(table, w_v, b_v), self.bias_v[0], nothing])
        keys, values = (part.unflatten(1, (self.heads, -1)).transpose(0, 1) for part in (keys, values))
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(self._queries(queries)[None], keys[None], values[None], None, dropout)[0]

    def _queries(self, queries: Tensor) -> Float[Tensor, "h q e"]:
        dim = queries.shape[1]
        projected = F.linear(queries, self.in_proj_weight[:dim], self.in_proj_bias[:dim])
        return projected.unflatten(1, (self.heads, -1)).transpose(0, 1)

    def _by_head(self, packed: Float[Tensor, "rows x"]) -> list[Float[Tensor, "h e x"]]:
        """The query, key and value part of a packed parameter."""
        return [self._split(part) for part in packed.chunk(3)]

    def _split(self, rows: Float[Tensor, "d x"]) -> Float[Tensor, "h e x"]:
        return rows.unflatten(0, (self.heads, -1))


class MacawMHAAligner(Aligner):
    """h' = Linear(Conv1D(h)), then `TableAttention` over the embedding table; without a residual, as in the original.

    Args:
        heads: 16 in the original's last version, 8 before. Shapes of weights do not tell.
        dropout: on the attention weights; 0.1 in the original's training, which keeps all V weights in memory.
    """

    def __init__(
        self,
        dim_in: int,
        seq_len: int,
        dim_out: int,
        kernel: int | None,
        stride: int | None,
        heads: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.compress = Compress(dim_in, seq_len, dim_out, kernel, stride)
        self.num_tokens = self.compress.num_tokens
        self.attention = TableAttention(dim_out, heads, dropout)

    def forward(self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n k d"]:
        tokens: Tensor = self.compress(features)  # [N, K, D]
        aligned: Tensor = self.attention(tokens.flatten(0, 1), table)  # [N·K, D]
        return aligned.view_as(tokens)

    def weights(self, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Float[Tensor, "n h k words"]:
        tokens: Tensor = self.compress(features)
        return self.attention.weights(tokens.flatten(0, 1), table).unflatten(1, tokens.shape[:2]).transpose(0, 1)
