"""What a medium's header says: whether the medium can be used, as far as that tells, and what is odd about it."""

import io
from pathlib import PurePath
from typing import Any

import soundfile
from PIL import Image, ImageFile

from macaw_lit.data.media.audio import MAX_SECONDS, missing_riff_bytes, sound_stream, wanted_samples
from macaw_lit.data.media.checks import DEFAULTS, Limits, OpenFile, media_error
from macaw_lit.data.media.container import open_container
from macaw_lit.data.media.image import from_pillow, load_image, open_picture
from macaw_lit.data.media.place import check_place, name_of, open_place
from macaw_lit.data.media.video import scan, video_stream
from macaw_lit.errors import MediaError
from macaw_lit.types import Place

ODDITIES = {
    "name_not_utf8": "the name is not UTF-8: JSON files cannot name it",
    "wrong_extension": "the content is of another kind than the name says; the content decides",
    "one_pixel": "one pixel: nothing to see",
    "cmyk": "CMYK: converted to RGB",
    "sixteen_bit": "16 bits: scaled to 8",
    "palette": "a palette: converted to RGB",
    "animated": "animated: the first frame is used",
    "no_sound": "a video without a sound stream: it is used without sound",
    "silent": "nothing but zeros",
    "odd_rate": "a rate that no camera or microphone has",
    "odd_channels": "more channels than loudspeakers have; they are averaged",
}
"""What is worth a look in media that can be used, and what becomes of it."""

ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
"""What the last bytes of complete files hold."""

FRAME_RATES = (0.1, 240.0)
"""Frames per second of videos in use."""

SAMPLE_RATES = (4_000, 192_000)
"""Samples per second of sounds in use."""

MAX_CHANNELS = 8

SOUND_SUFFIXES = {".wav": ("WAV", "WAVEX", "RF64"), ".flac": ("FLAC",), ".ogg": ("OGG",), ".mp3": ("MP3",)}
"""libsndfile's names of what files of a suffix should be."""


def probe(path: Place, kind: str, limits: Limits = DEFAULTS) -> tuple[str, ...]:
    """The oddities of a picture, video or sound, by its header and, for a video, its packets; nothing is decoded.

    A picture whose last bytes are not those of its format is decoded to be sure. Of another kind, only the file is
    checked.

    Raises:
        MediaError: the medium cannot be used; damage in the middle of a file, and NaN in a sound, are not seen.
    """
    name = () if _is_utf8(path) else ("name_not_utf8",)
    match kind:
        case "image":
            return (*name, *_probe_picture(path, limits))
        case "video":
            return (*name, *_probe_video(path, limits))
        case "audio":
            return (*name, *_probe_sound(path, limits))
    check_place(path, limits.media_bytes)
    return name


def _is_utf8(path: Place) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _probe_picture(path: Place, limits: Limits) -> list[str]:
    with open_place(path, limits.image_bytes) as file:
        with open_picture(path, file, limits) as picture:
            form, mode = str(picture.format), picture.mode
            named = Image.registered_extensions().get(_suffix(path), form)
            found = {
                "wrong_extension": named != {"MPO": "JPEG"}.get(form, form),
                "one_pixel": picture.size == (1, 1),
                "cmyk": mode in ("CMYK", "YCCK"),
                "sixteen_bit": mode.startswith("I"),
                "palette": mode in ("P", "PA"),
                "animated": form != "MPO" and _is_animated(picture),
            }
        complete = form not in ENDS or ENDS[form] in _tail(file)
    if not complete:
        load_image(path, limits)
    return [oddity for oddity, holds in found.items() if holds]


def _is_animated(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # Pillow's parsers raise nearly anything: damage behind the first frame, which alone is used
        return True


def _suffix(path: Place) -> str:
    return PurePath(name_of(path)).suffix.lower()


def _tail(file: OpenFile, size: int = 64) -> bytes:
    file.seek(-min(size, file.seek(0, 2)), 2)
    return file.read()


def _probe_video(path: Place, limits: Limits) -> list[str]:
    with open_place(path, limits.media_bytes) as file, open_container(path, file) as container:
        stream = video_stream(path, container, limits)
        rate = float(stream.average_rate or stream.base_rate or 25)
        found = {
            "wrong_extension": _misnamed(path, container),
            "one_pixel": (stream.codec_context.width, stream.codec_context.height) == (1, 1),
            "no_sound": not container.streams.audio,
            "odd_rate": not FRAME_RATES[0] <= rate <= FRAME_RATES[1],
        }
        scan(path, container, stream, limits)
    return [oddity for oddity, holds in found.items() if holds]


def _probe_sound(path: Place, limits: Limits) -> list[str]:
    with open_place(path, limits.media_bytes) as file:
        missing = missing_riff_bytes(file)
        try:
            with soundfile.SoundFile(file) as sound:
                frames = wanted_samples(path, sound, MAX_SECONDS, limits)
                rate, channels = sound.samplerate, sound.channels
                misnamed = sound.format not in SOUND_SUFFIXES.get(_suffix(path), (sound.format,))
        except soundfile.LibsndfileError:
            return _probe_container_sound(path, file, limits)
    if not frames:
        raise media_error("no_samples", path, "0 samples of sound", "at least one")
    if missing:
        raise media_error("truncated", path, f"{missing} bytes fewer than announced", "a complete sound")
    return _sound_oddities(misnamed, rate, channels)


def _probe_container_sound(path: Place, file: OpenFile, limits: Limits) -> list[str]:
    with open_container(path, file) as container:
        stream, _ = sound_stream(path, container, limits)
        return _sound_oddities(_misnamed(path, container), stream.rate, stream.channels)


def _sound_oddities(misnamed: bool, rate: int, channels: int) -> list[str]:
    found = {
        "wrong_extension": misnamed,
        "odd_rate": not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1],
        "odd_channels": channels > MAX_CHANNELS,
    }
    return [oddity for oddity, holds in found.items() if holds]


def _misnamed(path: Place, container: Any) -> bool:
    suffixes = container.format.extensions
    return bool(suffixes) and _suffix(path).lstrip(".") not in suffixes


def thumbnail(path: Place, kind: str, side: int = 112) -> bytes | None:
    """A small JPEG of what can be seen of a medium, even if it is damaged; None where nothing can.

    While it runs, all of this process's pictures may be damaged: not for use beside threads that decode.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES, before = True, ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with open_place(path, DEFAULTS.media_bytes) as file:
            if kind == "video":
                with open_container(path, file) as container:
                    picture = next(container.decode(video=0)).to_image()
            elif kind == "image":
                with open_picture(path, file) as opened:
                    picture = Image.fromarray(from_pillow(opened))
            else:
                return None
    except (MediaError, OSError, ValueError, SyntaxError, StopIteration):
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=70)
    return file.getvalue()
