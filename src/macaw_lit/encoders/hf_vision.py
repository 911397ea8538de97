"""Any vision encoder of transformers: SigLIP, DINOv2, CLIP, ViT, Swin and their kin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers import AutoImageProcessor, ImageProcessingMixin

from macaw_lit.encoders.hf import LOCAL, HFEncoder, ItemTransform
from macaw_lit.errors import ConfigError
from macaw_lit.hub import local_folder


class PictureTransform(ItemTransform):
    """Preprocessing of one picture, uint8 [H,W,3], by an image processor of transformers."""

    def arguments(self, decoded: np.ndarray) -> dict[str, Any]:
        return {"images": Image.fromarray(decoded)}


class HFVisionEncoder(HFEncoder):
    """The patches of a vision transformer as its last hidden state has them; class token and registers are left out.

    Whether that state is behind a last norm is up to the model: SigLIP's and DINOv2's is, CLIP's is not.

    Args:
        config, processor: as in `HFEncoder`; a processor dict names its class as `image_processor_type`.
    """

    medium = "image"

    def __init__(self, config: Mapping[str, Any] | str, processor: Mapping[str, Any] | str | None = None) -> None:
        super().__init__(config, processor, np.zeros((64, 48, 3), np.uint8))

    def read_processor(self, processor: Mapping[str, Any] | str | Path) -> PictureTransform:
        if not isinstance(processor, Mapping):
            folder = local_folder(str(processor), weights=False)
            return PictureTransform(AutoImageProcessor.from_pretrained(folder, **LOCAL))
        kind: Any = getattr(transformers, str(processor.get("image_processor_type")), None)
        if not (isinstance(kind, type) and issubclass(kind, ImageProcessingMixin)):
            raise ConfigError(f"image_processor_type {processor.get('image_processor_type')!r} is none of transformers")
        return PictureTransform(kind.from_dict(dict(processor)))
