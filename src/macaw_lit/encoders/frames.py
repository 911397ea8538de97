"""Frames of a video through an image encoder: one picture per frame on the way in, one long sequence on the way out."""

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from macaw_lit.errors import ConfigError

Positions = Literal["learned", "sinusoid"]


class FrameSequence(nn.Module, ABC):
    """Joins the frames of a video, in order of time.

    Args:
        frames: F, frames of every video.
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        if frames < 1:
            raise ConfigError(f"frames {frames}: a video has at least 1")
        self.frames = frames

    def unroll(self, values: Float[Tensor, "n f ..."]) -> Float[Tensor, "nf ..."]:
        return values.flatten(0, 1)

    def by_video(self, features: Float[Tensor, "nf s e"]) -> Float[Tensor, "n f s e"]:
        return features.unflatten(0, (features.shape[0] // self.frames, self.frames))

    @abstractmethod
    def forward(self, features: Float[Tensor, "nf s e"]) -> Float[Tensor, "n fs e"]:
        """One sequence per video, all positions of the first frame first."""


class FramePositions(FrameSequence):
    """Adds each frame's learned position to its features.

    Without a position, which frame came first could not be told by an aligner that looks at one frame at a time.

    Args:
        frames: F, frames of every video.
        dim: E, width of the features.
        seq_len: S, positions of one frame.
    """

    def __init__(self, frames: int, dim: int, seq_len: int) -> None:
        super().__init__(frames)
        self.position = nn.Parameter(torch.randn(frames, 1, dim) * dim**-0.5)

    def forward(self, features: Float[Tensor, "nf s e"]) -> Float[Tensor, "n fs e"]:
        return (self.by_video(features) + self.position).flatten(1, 2)


class FrameAttention(FrameSequence):
    """Positions, then one multi-head self-attention whose output replaces the features: the original Macaw-LLM's way.

    The attention has a learned extra key and value and a zero one (`add_bias_kv`, `add_zero_attn` of torch), and
    neither residual nor norm.

    Args:
        frames: F, frames of every video.
        dim: E, width of the features.
        seq_len: S, positions of one frame.
        heads: of the attention.
        positions: `sinusoid` is fixed, over all F·S positions (the original's long form); `learned` is one per frame
            (its short form).
        dropout: on the attention weights.

    Raises:
        ConfigError: the heads do not divide the width.
    """

    def __init__(
        self, frames: int, dim: int, seq_len: int, heads: int, positions: Positions = "sinusoid", dropout: float = 0.0
    ) -> None:
        super().__init__(frames)
        if heads < 1 or dim % heads:
            raise ConfigError(f"frame attention: {heads} heads do not divide the width {dim}: choose a divisor")
        if positions not in get_args(Positions):
            raise ConfigError(f"frame positions {positions!r}: expected one of {', '.join(get_args(Positions))}")
        self.position: Tensor
        if positions == "learned":
            self.position = nn.Parameter(torch.randn(frames, 1, dim) * dim**-0.5)
        else:
            self.register_buffer(
                "position", sinusoid(frames * seq_len, dim).view(frames, seq_len, dim), persistent=False
            )
        self.attention = nn.MultiheadAttention(
            dim, heads, dropout=dropout, add_bias_kv=True, add_zero_attn=True, batch_first=True
        )

    def forward(self, features: Float[Tensor, "nf s e"]) -> Float[Tensor, "n fs e"]:
        placed = (self.by_video(features) + self.position.to(features.dtype)).flatten(1, 2)
        attended: Tensor = self.attention(placed, placed, placed, need_weights=False)[0]
        return attended


def sinusoid(length: int, dim: int) -> Float[Tensor, "t e"]:
    """The original's fixed positions: channel i and i + 1 are sin and cos of p·exp(-ln(10000)·2i/E), i even.

    The exponent is twice the usual one, so that most of the upper half is constant; weights trained on it need it so.
    """
    steps = torch.tensor([-(math.log(10000.0) / dim * (2 * i)) for i in range(0, dim, 2)])
    angles = torch.arange(length)[:, None] * steps.exp()  # [T, E/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
