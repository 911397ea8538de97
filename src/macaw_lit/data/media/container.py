"""Opening videos and sounds with PyAV: local files only, playlists refused, FFmpeg quiet."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av

from macaw_lit.data.media.checks import DEFAULTS, OpenFile, media_error, unopened
from macaw_lit.data.media.place import open_place
from macaw_lit.errors import MediaError
from macaw_lit.types import Place

NO_CONTAINERS = ("tty", "image2", "hls", "dash", "concat")
"""FFmpeg's demuxers that turn text or playlists into streams; still pictures (`…_pipe`) are refused as well."""


@contextmanager
def open_container(path: Place, file: OpenFile) -> Iterator[Any]:
    """The container of at least one stream in an open file; FFmpeg may open nothing else.

    Raises:
        MediaError: unreadable; truncated for FFmpeg's errors in the body.
    """
    file.seek(0)
    try:
        container = av.open(file, options={"protocol_whitelist": "none"})
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        expected = "a complete video or sound file"
        raise media_error(unopened(file), path, f"no video or sound ({reason})", expected) from error
    with container:
        name = container.format.name
        if name.endswith("_pipe") or any(part in NO_CONTAINERS for part in name.split(",")):
            raise media_error("unreadable", path, f"a file of kind {name}", "a video or a sound file")
        if not container.streams:
            raise media_error(unopened(file), path, "no streams", "a complete video or sound file")
        try:
            yield container
        except av.FFmpegError as error:
            found = f"damaged inside ({error.strerror})"
            raise media_error("truncated", path, found, "a complete video or sound file") from error


def seconds_of(container: Any, stream: Any) -> float | None:
    """Length of a stream by its header; Matroska keeps it in a tag. None where no header tells."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    tag = re.match(r"(\d\d):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""), re.ASCII)
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    alone = len(container.streams) == 1
    return container.duration / 1e6 if alone and container.duration else None


def has_audio(path: Place) -> bool:
    """Whether a video has sound that can be decoded; False too where the file cannot be opened at all."""
    try:
        with open_place(path, DEFAULTS.media_bytes) as file, open_container(path, file) as container:
            return any(stream.codec_context and stream.duration != 0 for stream in container.streams.audio)
    except MediaError:
        return False
