"""What holds for every medium before it is decoded: limits, the file itself, and how errors are worded."""

import io
import stat
from dataclasses import dataclass
from pathlib import Path

from macaw_lit.errors import MediaError
from macaw_lit.types import Place

REMEDIES = {
    "missing": "check the path",
    "not_a_file": "give the path of a regular file",
    "empty": "fetch the file again",
    "unreadable": "give a file of the expected kind or convert it to JPEG, MP4 or WAV",
    "truncated": "the file is cut short or damaged inside: fetch it again",
    "no_video": "give a file with a video stream",
    "no_audio": "give a file with sound or leave the sound out",
    "too_large": "make it smaller, or raise the limit",
    "too_long": "cut it, or raise the limit",
    "wrong_checksum": "copy the packed data again, or pack them anew",
    "not_finite": "write the sound again without NaN and infinities",
    "no_samples": "give a sound that lasts longer than zero seconds",
}
CAUSES = tuple(REMEDIES)
"""Every `MediaError.cause` that this module raises."""


@dataclass(frozen=True)
class Limits:
    """Largest media that are decoded; checked against the file system and the headers before anything is decoded.

    Attributes:
        image_bytes: size of a picture's file.
        image_pixels: width times height of a picture.
        media_bytes: size of a video's or sound's file.
        video_side: longer side of a video in pixels.
        video_seconds: length of a video.
        video_frames: frames of a video; 60 per second over `video_seconds`.
        audio_seconds: length of a sound file.
        audio_values: samples times channels that are read at once.
    """

    image_bytes: int = 64 * 2**20
    image_pixels: int = 50_000_000
    media_bytes: int = 2**30
    video_side: int = 4096
    video_seconds: float = 600.0
    video_frames: int = 36_000
    audio_seconds: float = 300.0
    audio_values: int = 60_000_000


DEFAULTS = Limits()
"""The limits that hold unless others are given."""

OpenFile = io.BufferedReader | io.BytesIO
"""A medium's bytes: of a file, or in memory."""

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"\x1aE\xdf\xa3", b"fLaC", b"OggS")
"""First bytes of JPEG, PNG, WAV and AVI, Matroska, FLAC and Ogg."""

SHORT = 0.9
"""Share of the length in the header below which a video or sound counts as truncated: headers are a few frames off."""


def check_file(path: Path | str, max_bytes: int | None = None) -> None:
    """Refuses what is no regular file of one to `max_bytes` bytes, without opening it, so that a pipe cannot block.

    Raises:
        MediaError: missing, not_a_file, empty or too_large.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise media_error("missing", path, f"no such file ({type(error).__name__})", "an existing file") from error
    if not stat.S_ISREG(status.st_mode):
        raise media_error("not_a_file", path, "a folder or device", "a file")
    check_size(path, status.st_size, max_bytes)


def check_size(path: Place, size: int, max_bytes: int | None) -> None:
    """Refuses media of no bytes, or of more than `max_bytes`.

    Raises:
        MediaError: empty or too_large.
    """
    if size == 0:
        raise media_error("empty", path, "0 bytes", "a file with content")
    if max_bytes is not None and size > max_bytes:
        raise media_error("too_large", path, f"{size} bytes", f"at most {max_bytes}")


def unopened(file: OpenFile) -> str:
    """Cause for a file whose header could not be parsed: truncated where its first bytes are those of a known kind."""
    file.seek(0)
    head = file.read(8)
    return "truncated" if head.startswith(SIGNATURES) or head[4:] == b"ftyp" else "unreadable"


def media_error(cause: str, path: Place, found: str, expected: str) -> MediaError:
    """The error of one cause on one line: the path, what was found, what was expected, the remedy."""
    line = f"{str(path)!r}: {found}, expected {expected}; {REMEDIES[cause]}"
    return MediaError(cause, " ".join(line.split()))
