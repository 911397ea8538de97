"""Files to pixels, frames and waveforms: limits before decoding, one typed error for whatever is wrong with a file."""

from collections.abc import Sequence

import numpy as np

from macaw_lit.data.media.audio import RATE, load_audio
from macaw_lit.data.media.checks import CAUSES, DEFAULTS, Limits
from macaw_lit.data.media.container import has_audio
from macaw_lit.data.media.image import load_image
from macaw_lit.data.media.memory import in_memory
from macaw_lit.data.media.place import name_of, open_place
from macaw_lit.data.media.probe import ODDITIES, probe, thumbnail
from macaw_lit.data.media.video import load_video
from macaw_lit.types import Decoded, MediaRef, Medium, Place

__all__ = [
    "CAUSES",
    "ODDITIES",
    "RATE",
    "Limits",
    "has_audio",
    "in_memory",
    "load",
    "load_audio",
    "load_image",
    "load_video",
    "name_of",
    "open_place",
    "probe",
    "thumbnail",
    "with_sounds",
]


def load(path: Place, decoder: Medium, frames: int | None = None, limits: Limits = DEFAULTS) -> np.ndarray:
    """Decodes one medium: image uint8 [H,W,3], video uint8 [F,H,W,3], audio float32 [samples], 30 s at 16 kHz at most.

    Raises:
        MediaError: the file cannot be used; `cause` is one of `CAUSES`.
        ValueError: `video` without a positive number of frames.
    """
    if decoder == "image":
        return load_image(path, limits)
    if decoder == "audio":
        return load_audio(path, limits=limits)
    if not frames:
        raise ValueError(f"frames={frames}: a video needs a positive number of frames")
    return load_video(path, frames, limits=limits)


def with_sounds(media: Sequence[MediaRef]) -> tuple[MediaRef, ...]:
    """`media`, and behind them the sound of each video file that has one."""
    films = [ref for ref in media if ref.kind == "video" and not isinstance(ref, Decoded)]
    return (*media, *(MediaRef("audio", film.path) for film in films if has_audio(film.path)))
