"""Pictures by Pillow."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from macaw_lit.data.media.checks import DEFAULTS, Limits, OpenFile, media_error, unopened
from macaw_lit.data.media.place import open_place
from macaw_lit.types import Place

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")


def load_image(path: Place, limits: Limits = DEFAULTS) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as uint8 [H,W,3]: upright, first frame of an animation, transparency over white, 16 bits scaled to 8.

    Raises:
        MediaError: missing, not_a_file, empty, unreadable, truncated or too_large.
    """
    with open_place(path, limits.image_bytes) as file, open_picture(path, file, limits) as picture:
        try:
            picture.load()
            return from_pillow(picture)
        except Exception as error:
            raise media_error("truncated", path, f"damaged picture ({error})", "a complete picture") from error


@contextmanager
def open_picture(path: Place, file: OpenFile, limits: Limits = DEFAULTS) -> Iterator[Image.Image]:
    """The picture of an open file; its header was read and found within the limits, and nothing more.

    Raises:
        MediaError: unreadable, truncated for the header alone, or too_large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(file, formats=IMAGE_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise media_error("too_large", path, str(error), f"at most {limits.image_pixels} pixels") from error
        except Exception as error:  # Pillow's parsers raise nearly anything on damaged headers.
            raise media_error(unopened(file), path, f"no picture ({type(error).__name__})", "a JPEG or PNG") from error
        with picture:
            width, height = picture.size
            if width * height > limits.image_pixels:
                found = f"{width}×{height} pixels"
                raise media_error("too_large", path, found, f"at most {limits.image_pixels} pixels")
            yield picture


def from_pillow(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of any of Pillow's modes as uint8 [H,W,3], upright."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
        grey = np.clip(np.asarray(picture, dtype=np.int64), 0, 65535) // 257
        picture = Image.fromarray(grey.astype(np.uint8))
    elif picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture))
        scaled = values * 255 if values.max() <= 1 else values
        picture = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))
