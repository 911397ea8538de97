"""CLIP's vision transformer, by open_clip."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from open_clip import image_transform
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import QuickGELU, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from macaw_lit.encoders.base import Encoder
from macaw_lit.errors import ConfigError
from macaw_lit.weights import load_exactly, read_weights, tensors_under


class ClipTransform:
    """CLIP's own preprocessing: bicubic resize of the short side, centre crop, normalisation."""

    def __init__(self, image_size: int) -> None:
        self.steps: Callable[[Image.Image], Tensor] = image_transform(
            image_size, is_train=False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD
        )

    def __call__(self, pixels: np.ndarray) -> Float[Tensor, "3 h w"]:
        return self.steps(Image.fromarray(pixels))


class ClipEncoder(Encoder):
    """Patch tokens of a CLIP ViT after its final LayerNorm, the class token left out.

    Args:
        image_size, patch_size: side of the square input and of a patch, in pixels.
        width, layers, heads: size of the transformer; `width` is E.
        output_dim: width of CLIP's shared text–image space; its projection is kept so that checkpoints fit, and unused.
        quick_gelu: the activation of OpenAI's own weights, x·σ(1.702x), instead of GELU. A ViT loaded with the wrong
            one runs without an error and is silently worse (open_clip issue 771).
        patch_order: `raster` is row by row, as every published model has it. `zorder` is the Morton curve, along which
            a run of 4ⁱ patches is a square block, so that a convolution over positions sees a region and not a strip.
    """

    medium = "image"

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        output_dim: int = 512,
        quick_gelu: bool = True,
        patch_order: Literal["raster", "zorder"] = "raster",
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(
                f"image_size {image_size} is no multiple of patch_size {patch_size}: choose sizes that divide"
            )
        if width % heads:
            raise ConfigError(f"CLIP width {width} is no multiple of heads {heads}: choose numbers that divide")
        side = image_size // patch_size
        self.visual = VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            layers=layers,
            heads=heads,
            mlp_ratio=4.0,
            output_dim=output_dim,
            act_layer=QuickGELU if quick_gelu else nn.GELU,
        )
        # The projection into the text–image space belongs to the checkpoint but feeds nothing here: a parameter that
        # never gets a gradient makes DDP wait for ever.
        if self.visual.proj is not None:
            self.visual.proj.requires_grad_(False)
        self.dim = width
        self.seq_len = side**2
        self.input_shape = (3, image_size, image_size)
        self.transform = ClipTransform(image_size)
        order = zorder(side) if patch_order == "zorder" else torch.arange(side**2)
        self.order: Tensor
        self.register_buffer("order", order, persistent=False)

    def forward(self, values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n s e"]:
        # open_clip's own forward reshapes with -1, which is ambiguous for 0 items; these are its steps without that.
        trunk = self.visual
        patches = trunk.conv1(values).flatten(2).transpose(1, 2)  # [N, S, E]
        class_token = trunk.class_embedding.expand(len(values), 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + trunk.positional_embedding
        tokens = trunk.ln_post(trunk.transformer(trunk.ln_pre(tokens)))
        return tokens[:, 1 + self.order]

    def load_pretrained(self, source: str) -> None:
        """Load `visual.*` of an open_clip checkpoint; the text tower and the logit scale are left where they are."""
        state = read_weights(Path(source))
        inner = state.get("state_dict")
        if isinstance(inner, dict):  # a training checkpoint of open_clip, with epoch and optimizer beside the weights
            state = {key.removeprefix("module."): value for key, value in inner.items()}
        load_exactly(self.visual, tensors_under(state, "visual."), f"visual.* of {source}")


def zorder(side: int) -> Tensor:
    """Raster indices of a `side`×`side` grid in the order of the Morton curve, [side²].

    Raises:
        ConfigError: `side` is no power of two.
    """
    bits = side.bit_length() - 1
    if side != 1 << bits:
        raise ConfigError(f"patch_order zorder needs a power of two of patches a side, not {side}: use raster")
    rank = torch.arange(side**2)
    row = sum((((rank >> (2 * bit + 1)) & 1) << bit for bit in range(bits)), torch.zeros_like(rank))
    column = sum((((rank >> (2 * bit)) & 1) << bit for bit in range(bits)), torch.zeros_like(rank))
    return row * side + column
