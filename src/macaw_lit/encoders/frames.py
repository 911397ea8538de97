"""Frames of a video through an image encoder: one picture per frame on the way in, one long sequence on the way out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FrameSequence(nn.Module):
    """Adds each frame's learned position to its features and joins the frames of a video, in order of time.

    Without a position, which frame came first could not be told by an aligner that looks at one frame at a time.

    Args:
        frames: F, frames of every video.
        dim: E, width of the features.
    """

    def __init__(self, frames: int, dim: int) -> None:
        super().__init__()
        self.frames = frames
        self.position = nn.Parameter(torch.randn(frames, 1, dim) * dim**-0.5)

    def unroll(self, values: Float[Tensor, "n f ..."]) -> Float[Tensor, "nf ..."]:
        return values.flatten(0, 1)

    def forward(self, features: Float[Tensor, "nf s e"]) -> Float[Tensor, "n fs e"]:
        by_video = features.unflatten(0, (features.shape[0] // self.frames, self.frames))  # [N, F, S, E]
        return (by_video + self.position).flatten(1, 2)
