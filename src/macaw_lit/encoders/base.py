"""The seam between raw media and features."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from macaw_lit.precision import ExactConstants
from macaw_lit.weights import Coverage


class Encoder(ExactConstants, ABC):
    """Encodes one medium at a time. Built from sizes alone: weights are a separate, explicit call.

    Attributes:
        medium: what it looks at or listens to; frames of a video are images.
        dim: E, the width of its features.
        seq_len: S, the positions it gives for one item.
        input_shape: shape of one item's `values`.
        transform: the preprocessing that belongs to it: one decoded item → its `values`. Picklable, without weights.
    """

    medium: Literal["image", "audio"]
    dim: int
    seq_len: int
    input_shape: tuple[int, ...]
    transform: Callable[[np.ndarray], Tensor]

    @abstractmethod
    def forward(self, values: Float[Tensor, "n ..."]) -> Float[Tensor, "n s e"]:
        """Encode `n` items; `n` may be 0, so that a rank without this medium still runs every hook."""

    @abstractmethod
    def load_pretrained(self, source: str) -> Coverage:
        """Copy the weights of a file, a folder or a hub id into this module, and report on every one of them.

        Raises:
            WeightsError: a wanted key is missing, unknown or of another shape, or the source says of itself what this
                encoder is not; the message lists them and nothing was copied.
        """

    def save_config(self) -> dict[str, Any]:
        """Arguments that differ from those it was built with, so that the model folder needs no other file."""
        return {}
