"""Small specs for the tests of the data side, which need no model."""

import numpy as np
import pytest
import torch

from macaw_lit.types import MediaSpec


def picture_values(picture: np.ndarray) -> torch.Tensor:
    """The mean colour, spread over [3,4,4]: it identifies the picture."""
    return torch.from_numpy(picture.astype(np.float32).mean((0, 1)) / 255)[:, None, None].expand(3, 4, 4).clone()


def sound_values(sound: np.ndarray) -> torch.Tensor:
    """The loudness, spread over [2,5]."""
    return torch.full((2, 5), float(np.abs(sound).max()))


@pytest.fixture
def specs() -> dict[str, MediaSpec]:
    return {
        "image": MediaSpec("image", picture_values, 3, (3, 4, 4)),
        "video": MediaSpec("video", picture_values, 4, (2, 3, 4, 4), frames=2),
        "audio": MediaSpec("audio", sound_values, 2, (2, 5)),
    }
