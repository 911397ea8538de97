"""Media that are in memory already: pictures of Pillow and arrays, held to what the decoders deliver."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from macaw_lit.data.media.audio import RATE
from macaw_lit.data.media.checks import DEFAULTS, Limits, media_error
from macaw_lit.data.media.image import from_pillow
from macaw_lit.data.media.video import centres
from macaw_lit.types import Decoded, Medium

_WANTED = {"image": "uint8 [H,W,3]", "video": "uint8 [F,H,W,3]", "audio": f"a mono float32 waveform of {RATE} Hz"}
_SHAPES = {"image": 3, "video": 4, "audio": 1}  # dimensions


def in_memory(kind: str, value: object) -> Decoded:
    """A medium given as a Pillow picture, as an array, or, for a video, as a list of Pillow pictures of one size.

    Raises:
        MediaError: unreadable: it is something else.
    """
    name = f"{kind} in memory"
    given: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    frames = [frame for frame in given if isinstance(frame, Image.Image)]
    if frames and len(frames) == len(given):
        arrays = [from_pillow(frame) for frame in frames]
        if len({array.shape for array in arrays}) > 1:
            raise media_error("unreadable", name, "frames of several sizes", "frames of one size")
        return Decoded(kind, name, arrays[0] if isinstance(value, Image.Image) else np.stack(arrays))
    if not isinstance(value, np.ndarray):
        expected = "a path, a Pillow picture or a numpy array"
        raise media_error("unreadable", name, f"a {type(value).__name__}", expected)
    return Decoded(kind, name, value)


def as_decoded(ref: Decoded, decoder: Medium, frames: int | None, limits: Limits = DEFAULTS) -> np.ndarray:
    """What the decoder would have delivered: the picture, F frames of the video, the first 30 s of the sound.

    Raises:
        MediaError: unreadable, empty, too_large or not_finite.
        ValueError: `video` without a positive number of frames.
    """
    values = ref.values
    found = f"{values.dtype} {list(values.shape)}"
    kind = np.floating if decoder == "audio" else np.uint8
    colours = decoder == "audio" or values.shape[-1:] == (3,)
    if values.ndim != _SHAPES[decoder] or not np.issubdtype(values.dtype, kind) or not colours:
        raise media_error("unreadable", ref.path, found, _WANTED[decoder])
    if not values.size:
        raise media_error("empty", ref.path, found, _WANTED[decoder])
    if decoder == "audio":
        wave = np.ascontiguousarray(values[: 30 * RATE], dtype=np.float32)
        if not np.isfinite(wave).all():
            raise media_error("not_finite", ref.path, "NaN or infinite samples", "finite samples")
        return wave
    if values.shape[-3] * values.shape[-2] > limits.image_pixels:
        raise media_error("too_large", ref.path, found, f"at most {limits.image_pixels} pixels a picture")
    if decoder == "image":
        return values
    if not frames:
        raise ValueError(f"frames={frames}: a video needs a positive number of frames")
    chosen: np.ndarray = values[centres(np.arange(len(values)), frames)]
    return chosen
