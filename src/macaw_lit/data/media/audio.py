"""Waveforms of sound files by libsndfile, of videos by PyAV, resampled by librosa."""

from typing import Any

import av
import numpy as np
import soundfile
from jaxtyping import Float32

from macaw_lit.data.media.checks import DEFAULTS, SHORT, Limits, OpenFile, media_error
from macaw_lit.data.media.container import open_container, seconds_of
from macaw_lit.data.media.place import open_place
from macaw_lit.types import Place

RATE = 16_000
"""Samples per second of every waveform."""

MAX_SECONDS = 30.0
"""The most that is read of a sound: Whisper's window."""


def load_audio(
    path: Place, rate: int = RATE, max_seconds: float = MAX_SECONDS, limits: Limits = DEFAULTS
) -> Float32[np.ndarray, " samples"]:
    """The first `max_seconds` of a sound file or of a video's sound as a mono float32 waveform [samples].

    Raises:
        MediaError: any cause but `no_video`.
    """
    with open_place(path, limits.media_bytes) as file:
        missing = missing_riff_bytes(file)
        try:
            with soundfile.SoundFile(file) as sound:
                wave, found_rate = _file_sound(path, sound, missing, max_seconds, limits), sound.samplerate
        except (
            soundfile.LibsndfileError
        ):  # not one of libsndfile's formats: a container with a sound stream, or no sound at all
            wave, found_rate = _container_sound(path, file, max_seconds, limits)
    if not wave.size:
        raise media_error("no_samples", path, "0 samples of sound", "at least one")
    if not np.isfinite(wave).all():
        raise media_error("not_finite", path, "NaN or infinite samples", "finite samples")
    if found_rate != rate:
        import librosa  # imports numba: seconds, so only where it is needed

        wave = librosa.resample(wave, orig_sr=found_rate, target_sr=rate)
    return np.ascontiguousarray(wave, dtype=np.float32)


def _file_sound(
    path: Place, sound: soundfile.SoundFile, missing: int, max_seconds: float, limits: Limits
) -> np.ndarray:
    """The start of an open sound file at its own rate, mono; `missing` bytes are not there."""
    wanted = wanted_samples(path, sound, max_seconds, limits)
    try:
        wave: np.ndarray = sound.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
    except soundfile.LibsndfileError as error:
        raise media_error("truncated", path, f"damaged sound ({error})", "a complete sound") from error
    if missing or len(wave) < SHORT * wanted:
        raise media_error("truncated", path, f"{len(wave)} samples", f"{wanted} samples and {missing} more bytes")
    return wave


def wanted_samples(path: Place, sound: soundfile.SoundFile, max_seconds: float, limits: Limits) -> int:
    """How many samples of an open sound file are to be read, its header checked against the limits.

    Raises:
        MediaError: too_long or too_large.
    """
    rate, length = sound.samplerate, sound.frames
    if length > limits.audio_seconds * rate:
        raise media_error("too_long", path, f"{length / rate:.0f} s of sound", f"at most {limits.audio_seconds:.0f} s")
    wanted = min(length, int(max_seconds * rate))
    if wanted * sound.channels > limits.audio_values:
        found = f"{wanted} samples of {sound.channels} channels"
        raise media_error("too_large", path, found, f"at most {limits.audio_values} values")
    return wanted


def missing_riff_bytes(file: OpenFile) -> int:
    """Bytes a WAV header announces beyond the end of the file, which libsndfile passes over; 1 % is let pass."""
    file.seek(0)
    head = file.read(12)
    size = file.seek(0, 2)
    file.seek(0)
    announced = int.from_bytes(head[4:8], "little") + 8
    unknown = head[:4] != b"RIFF" or announced >= 2**32 - 1  # written to a pipe
    return 0 if unknown or size >= 0.99 * announced else announced - size


def _container_sound(path: Place, file: OpenFile, max_seconds: float, limits: Limits) -> tuple[np.ndarray, int]:
    """The start of a container's first sound stream, mono, and its rate."""
    with open_container(path, file) as container:
        stream, seconds = sound_stream(path, container, limits)
        wave, rate = _decode(container, stream, max_seconds)
        expected = min(max_seconds, seconds or 0.0)
        if len(wave) < SHORT * expected * rate:
            raise media_error("truncated", path, f"{len(wave) / rate:.1f} s of sound", f"{expected:.1f} s")
        return wave[: round(expected * rate)] if seconds else wave, rate


def sound_stream(path: Place, container: Any, limits: Limits) -> tuple[Any, float | None]:
    """The sound stream of an open container and its length in seconds by the header, checked against the limits.

    Raises:
        MediaError: no_audio, unreadable or too_long.
    """
    if not container.streams.audio:
        raise media_error("no_audio", path, "no sound stream", "a sound file or a video with sound")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise media_error("unreadable", path, "sound of unknown coding", "a common coding such as AAC")
    if not stream.channels or not stream.rate:
        found = f"sound of {stream.channels} channels at {stream.rate} Hz"
        raise media_error("unreadable", path, found, "a header with both")
    seconds = seconds_of(container, stream)
    if seconds is not None and seconds > limits.video_seconds:
        raise media_error("too_long", path, f"{seconds:.0f} s of sound", f"at most {limits.video_seconds:.0f} s")
    return stream, seconds


def _decode(container: Any, stream: Any, max_seconds: float) -> tuple[np.ndarray, int]:
    """Samples of a stream from time 0 on, mono, and their rate."""
    rate, wanted = stream.rate, int(max_seconds * stream.rate)
    mono: Any = None
    before: tuple[str, str, int] | None = None
    pieces: list[np.ndarray] = []
    total = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # players pass over one damaged packet; the caller judges by the whole length
        for frame in frames:
            early = -min(0, round(frame.time * rate)) if frame.time is not None else 0  # encoder's priming
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if form != before:  # by damage, or where a broadcast goes from six channels to two
                mono, before = av.AudioResampler(format="fltp", layout="mono", rate=rate), form
            for part in mono.resample(frame):
                pieces.append(part.to_ndarray()[0, early:])
                total += pieces[-1].size
        if total >= wanted:
            break
    wave = np.concatenate(pieces)[:wanted] if pieces else np.zeros(0, np.float32)
    return wave, rate
