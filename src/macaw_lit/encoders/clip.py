"""CLIP's vision transformer, by open_clip."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from open_clip import image_transform
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import QuickGELU, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from macaw_lit.encoders.base import Encoder
from macaw_lit.encoders.clip_checkpoints import read_clip, rounded
from macaw_lit.errors import ConfigError
from macaw_lit.hub import locate
from macaw_lit.weights import Coverage, check_facts, load_exactly

_UNUSED = {"tokens": {"proj"}, "projected": {"ln_post.weight", "ln_post.bias"}, "pooled": set[str]()}
"""Forms of the output, and what they leave of the checkpoint."""

_ORDERS = ("raster", "zorder")


class ClipTransform:
    """CLIP's own preprocessing: bicubic resize of the short side, centre crop, normalisation."""

    def __init__(self, image_size: int) -> None:
        self.steps: Callable[[Image.Image], Tensor] = image_transform(
            image_size, is_train=False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD
        )

    def __call__(self, pixels: np.ndarray) -> Float[Tensor, "3 h w"]:
        return self.steps(Image.fromarray(pixels))


class ClipEncoder(Encoder):
    """A CLIP ViT in one of three forms; weights that a form has no use for are not part of it.

    Args:
        image_size, patch_size: side of the square input and of a patch, in pixels.
        width, layers, heads: size of the transformer.
        mlp_width: of its feed-forward layers; None is 4 × width, as OpenAI's have it.
        output_dim: width of CLIP's shared text–image space; the form `tokens` stays outside of it.
        form: what it gives for one picture.
            `tokens`: the patches after the final LayerNorm, E = width.
            `projected`: the patches without that LayerNorm, through the projection, E = output_dim. This is what the
            original Macaw-LLM does with pictures, although CLIP was never trained so.
            `pooled`: the class token after both, S = 1, E = output_dim: CLIP's own embedding, not normalised.
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
        mlp_width: int | None = None,
        output_dim: int = 512,
        form: str = "tokens",
        quick_gelu: bool = True,
        patch_order: str = "raster",
    ) -> None:
        super().__init__()
        for name, value, known in (("form", form, _UNUSED), ("patch_order", patch_order, _ORDERS)):
            if value not in known:
                raise ConfigError(f"CLIP {name} {value!r}: expected one of {', '.join(known)}")
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
            mlp_ratio=(mlp_width + 0.5) / width if mlp_width else 4.0,  # open_clip rounds width * mlp_ratio down
            output_dim=output_dim,
            act_layer=QuickGELU if quick_gelu else nn.GELU,
        )
        # A parameter that never gets a gradient makes DDP wait for ever.
        if form == "tokens":
            self.visual.proj = None
        if form == "projected":
            self.visual.ln_post = nn.Identity()
        self.form = form
        self.facts: dict[str, Any] = {
            "quick_gelu": quick_gelu,
            "image_size": image_size,
            "heads": heads,
            "eps": 1e-5,
            "act_kwargs": None,
            "resize": image_size,
            "crop": image_size,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "mean": rounded(OPENAI_DATASET_MEAN),
            "std": rounded(OPENAI_DATASET_STD),
            **({"pool_type": "tok"} if form == "pooled" else {}),
        }
        self.dim = width if form == "tokens" else output_dim
        self.seq_len = 1 if form == "pooled" else side**2
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
        tokens = trunk.transformer(trunk.ln_pre(tokens))
        tokens = trunk.ln_post(tokens[:, :1] if self.form == "pooled" else tokens[:, 1 + self.order])
        return tokens if trunk.proj is None else tokens @ trunk.proj

    def load_pretrained(self, source: str) -> Coverage:
        """Load a checkpoint of open_clip (file or folder), or a folder or hub id of transformers' CLIP.

        Raises:
            WeightsError: a wanted weight did not arrive, one is unknown, or the files state another activation, number
                of heads or preprocessing than this encoder has. A file of open_clip alone states nothing of these.
        """
        state, left_out, stated = read_clip(locate(source))
        checked = check_facts(stated, self.facts, source, "configure what it says; encoder=hf_vision fits any CLIP")
        unused = _UNUSED[self.form] & state.keys()
        wanted = {name: tensor for name, tensor in state.items() if name not in unused}
        return load_exactly(self.visual, wanted, source, [*left_out, *unused], checked)


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
