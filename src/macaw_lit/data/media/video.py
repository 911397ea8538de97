"""Frames of videos by decord or PyAV, both the same ones."""

import io
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from macaw_lit.data.media.checks import DEFAULTS, SHORT, Limits, OpenFile, media_error
from macaw_lit.data.media.container import open_container, seconds_of
from macaw_lit.data.media.place import open_place
from macaw_lit.types import Place


def load_video(
    path: Place,
    frames: int,
    backend: Literal["auto", "decord", "pyav"] = "auto",
    limits: Limits = DEFAULTS,
) -> UInt8[np.ndarray, "f h w 3"]:
    """The frames on screen at the centres of F equal intervals of the clip, uint8 [F,H,W,3]; a short clip repeats some.

    Both backends deliver the same frames. `auto` takes decord where it is installed and can read the file, else PyAV;
    always PyAV's are videos that a display matrix turns upright, which decord garbles, and open groups of pictures,
    of which decord delivers the wrong frames.

    Raises:
        MediaError: missing, not_a_file, empty, unreadable, truncated, no_video, too_large or too_long.
    """
    with open_place(path, limits.media_bytes) as file, open_container(path, file) as container:
        stream = video_stream(path, container, limits)
        index = scan(path, container, stream, limits)
        chosen = centres(index.stamps, frames)
        turns = _quarter_turns(container, stream)
        if backend != "pyav" and not turns and not index.leading:
            try:
                return _decord_frames(file, chosen)
            except Exception as error:  # DECORDError is a bare Exception; decord may also not be installed
                if backend == "decord":
                    raise media_error("truncated", path, f"decord fails ({error})", "a complete video") from error
        pictures = _pyav_frames(path, container, stream, index.stamps[chosen], index.keys)
        return np.rot90(pictures, turns, axes=(1, 2)).copy() if turns else pictures


class _Index(NamedTuple):
    """Where the frames of a stream are, in its time base.

    Attributes:
        stamps: int64 [frames], when they are shown, ascending.
        keys: int64 [key frames, 2], when a key frame is shown and where to seek for it.
        leading: some frames follow a key frame in the file but are shown before it.
    """

    stamps: np.ndarray
    keys: np.ndarray
    leading: bool


def video_stream(path: Place, container: Any, limits: Limits) -> Any:
    """The video stream of an open container, its header checked against the limits."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise media_error("no_video", path, "no video stream", "a video")
    stream = streams[0]
    if stream.codec_context is None:
        raise media_error("unreadable", path, "a video of unknown coding", "a common coding such as H.264")
    side = max(stream.codec_context.width, stream.codec_context.height)
    if side > limits.video_side:
        raise media_error("too_large", path, f"{side} pixels wide or high", f"at most {limits.video_side}")
    seconds = seconds_of(container, stream)
    if seconds is not None and seconds > limits.video_seconds:
        raise media_error("too_long", path, f"{seconds:.0f} s of video", f"at most {limits.video_seconds:.0f} s")
    return stream


def scan(path: Place, container: Any, stream: Any, limits: Limits) -> _Index:
    """The index of a stream from its packets; nothing is decoded."""
    stamps: list[int] = []
    keys: list[tuple[int, int]] = []
    leading = False
    for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.is_discard or packet.size == 0:
            continue
        stamps.append(stamp)
        leading = leading or bool(keys and stamp < keys[-1][0])
        if packet.is_keyframe:
            # AVI's index is in decoding order: seeking to the time of display would land on a later key frame.
            keys.append((stamp, stamp if packet.dts is None else packet.dts))
        if len(stamps) > limits.video_frames:
            raise media_error("too_long", path, f"over {limits.video_frames} frames", "fewer")
    times = np.unique(np.array(stamps, dtype=np.int64))
    seconds = seconds_of(container, stream) or 0.0
    span = float((times[-1] - times[0]) * stream.time_base) if len(times) > 1 else 0.0
    # The span of n frames is one frame shorter than their duration.
    short = len(times) < SHORT * stream.frames if stream.frames else span < SHORT * seconds and len(times) > 10
    if not len(times) or short:
        found = f"{len(times)} frames over {span:.1f} s"
        raise media_error("truncated", path, found, f"{stream.frames or 'all'} frames over {seconds:.1f} s")
    return _Index(times, np.array(sorted(keys) or [(times[0], times[0])], dtype=np.int64), leading)


def centres(stamps: np.ndarray, frames: int) -> np.ndarray:
    """Indices of the frames on screen at the centres of equal intervals, exact in integers."""
    step = int(np.median(np.diff(stamps))) if len(stamps) > 1 else 1
    span = int(stamps[-1] - stamps[0]) + step
    centres = (2 * np.arange(frames, dtype=np.int64) + 1) * span  # in units of a time stamp / 2F
    indices: np.ndarray = np.searchsorted((stamps - stamps[0]) * 2 * frames, centres, side="right") - 1
    return indices


def _decord_frames(file: OpenFile, indices: np.ndarray) -> np.ndarray:
    """Frames by decord, opened per call: a reader that crosses a fork hangs."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    given = io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else str(Path(file.name).resolve())
    reader = decord.VideoReader(given, num_threads=1)
    frames: np.ndarray = reader.get_batch(np.minimum(indices, len(reader) - 1)).asnumpy()
    return frames


def _quarter_turns(container: Any, stream: Any) -> int:
    """Quarter turns to the left that set the first frame upright."""
    stream.codec_context.thread_count = 1
    container.seek(0)
    first = next(container.decode(stream), None)
    return 0 if first is None else round(first.rotation / 90) % 4


def _pyav_frames(path: Place, container: Any, stream: Any, stamps: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Frames by PyAV: forward from the key frame before, seeking only where one lies between."""
    source, frame = None, None
    pictures: list[np.ndarray] = []
    for stamp in stamps:
        key, target = keys[max(0, np.searchsorted(keys[:, 0], stamp, side="right") - 1)]
        if source is None or (frame is not None and _stamp(frame) < key):
            container.seek(int(target), stream=stream)
            source, frame = container.decode(stream), None
        while frame is None or _stamp(frame) < stamp:
            frame = next(source, None)
            if frame is None:
                raise media_error("truncated", path, "frames that cannot be decoded", "a complete video")
        size = {"width": pictures[0].shape[1], "height": pictures[0].shape[0]} if pictures else {}
        pictures.append(frame.to_ndarray(format="rgb24", **size))
    return np.stack(pictures)


def _stamp(frame: Any) -> int:
    stamp: int | None = frame.dts if frame.pts is None else frame.pts
    return 0 if stamp is None else stamp
