from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import librosa
import numpy as np
import pytest
import soundfile
from PIL import Image

from macaw_lit.data.media import CAUSES, Limits, load, load_audio, probe
from macaw_lit.errors import MediaError

Clip = Callable[..., Path]
FRAMES = [np.zeros((48, 64, 3), np.uint8)] * 20


def tone(seconds: float, rate: int = 16_000, pitch: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def pitch_of(wave: np.ndarray, rate: int = 16_000) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


def refused(cause: str, path: Path, limits: Limits | None = None) -> None:
    with pytest.raises(MediaError) as caught:
        load_audio(path, limits=limits or Limits())
    assert caught.value.cause == cause, str(caught.value)
    assert cause in CAUSES
    assert "\n" not in str(caught.value)


def test_pcm_comes_back_to_the_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-32768, 32768, 4000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", values, 16_000)
    wave = load(tmp_path / "a.wav", "audio")
    assert wave.dtype == np.float32
    np.testing.assert_array_equal(wave, values.astype(np.float32) / 32768)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_any_rate_and_channels_become_mono_at_16_khz(tmp_path: Path, name: str) -> None:
    left, right = tone(1.0, 44_100), tone(1.0, 44_100, 1000.0)
    soundfile.write(tmp_path / name, np.stack([left, right], axis=1), 44_100)
    wave = load_audio(tmp_path / name)
    assert wave.shape == (16_000,)
    # The independent reference reads the same file with librosa alone.
    reference, _ = librosa.load(tmp_path / name, sr=16_000, mono=True)
    np.testing.assert_allclose(wave, reference, atol=1e-5)


def test_another_rate_may_be_asked_for(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16_000)
    assert load_audio(tmp_path / "a.wav", rate=8000).shape == (4000,)


def test_long_sounds_are_cut(tmp_path: Path, clip: Clip) -> None:
    soundfile.write(tmp_path / "a.wav", tone(32.0), 16_000)
    assert load_audio(tmp_path / "a.wav").shape == (480_000,)
    assert load_audio(tmp_path / "a.wav", max_seconds=0.5).shape == (8000,)
    path = clip(tmp_path / "a.mp4", FRAMES, sound=tone(2.0))
    assert load_audio(path, max_seconds=0.5).shape == (8000,)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_sound_of_a_video(tmp_path: Path, clip: Clip, name: str, rate: int) -> None:
    sound = np.concatenate([np.zeros(rate, np.float32), tone(1.0, rate, 700.0)])
    wave = load_audio(clip(tmp_path / name, FRAMES, sound=sound, rate=rate))
    # AAC comes in blocks of 1024 samples; MP4 says where the sound ends, Matroska by the millisecond and the block.
    assert abs(len(wave) - 32_000) <= (1 if name == "a.mp4" else 1100)
    assert np.abs(wave[:15_000]).max() < 0.01
    assert abs(pitch_of(wave[16_500:31_500]) - 700) < 3
    onset = int(np.argmax(np.abs(wave) > 0.1))
    assert abs(onset - 16_000) < 1024  # the encoder's priming does not shift the sound


def test_stereo_sound_of_a_video_is_the_mean(tmp_path: Path) -> None:
    stereo = np.stack([tone(1.0), -tone(1.0)])
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(stereo, format="fltp", layout="stereo")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(load_audio(tmp_path / "a.mp4")).max() < 0.05


def test_bad_files_are_refused_by_cause(tmp_path: Path, clip: Clip) -> None:
    refused("missing", tmp_path / "none.wav")
    refused("not_a_file", tmp_path)
    (tmp_path / "empty.wav").touch()
    refused("empty", tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("This is no sound.\n" * 400)
    refused("unreadable", tmp_path / "text.wav")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.wav", format="JPEG")
    refused("unreadable", tmp_path / "picture.wav")
    refused("no_audio", clip(tmp_path / "silent.mp4", FRAMES))
    soundfile.write(tmp_path / "zero.wav", np.zeros(0, np.float32), 16_000)
    refused("no_samples", tmp_path / "zero.wav")
    for value in (np.nan, np.inf):
        soundfile.write(tmp_path / "odd.wav", np.array([0.0, value, 0.1], np.float32), 16_000, subtype="FLOAT")
        refused("not_finite", tmp_path / "odd.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp4", "a.mkv"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_cut_files_are_truncated(tmp_path: Path, clip: Clip, name: str, share: float) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 64_000).astype(np.float32)
    path = tmp_path / name
    if name in ("a.mp4", "a.mkv"):
        clip(path, FRAMES * 2, sound=noise, options={"movflags": "faststart"} if name == "a.mp4" else None)
    else:
        soundfile.write(path, noise, 16_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused("truncated", path)


def test_a_wav_that_claims_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.5), 16_000)
    data = bytearray(path.read_bytes())
    for place in (4, 40):
        data[place : place + 4] = (4_000_000_000).to_bytes(4, "little")
    path.write_bytes(data)
    refused("truncated", path)
    for place in (4, 40):  # what a recorder writes that cannot go back to the header
        data[place : place + 4] = b"\xff" * 4
    path.write_bytes(data)
    assert load_audio(path).shape == (8000,)


def test_a_header_with_more_channels_than_any_reader_takes(tmp_path: Path) -> None:
    """libsndfile refuses more than 1024, and FFmpeg then tells of none: without decoding it looked like a good file."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.1), 16_000)
    data = bytearray(path.read_bytes())
    data[22:24] = (60_000).to_bytes(2, "little")
    path.write_bytes(data)
    refused("unreadable", path)
    with pytest.raises(MediaError) as error:
        probe(path, "audio")
    assert error.value.cause == "unreadable"


def test_limits_hold_before_decoding(tmp_path: Path, clip: Clip) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(2.0)] * 2, axis=1), 16_000)
    refused("too_long", tmp_path / "a.wav", Limits(audio_seconds=1.9))
    refused("too_large", tmp_path / "a.wav", Limits(audio_values=63_999))
    refused("too_large", tmp_path / "a.wav", Limits(media_bytes=99))
    limits = Limits(audio_seconds=2.0, audio_values=64_000)
    assert load_audio(tmp_path / "a.wav", limits=limits).shape == (32_000,)
    refused("too_long", clip(tmp_path / "a.mp4", FRAMES, sound=tone(2.0)), Limits(video_seconds=1.9))


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, clip: Clip) -> None:
    rng = np.random.default_rng(7)
    outcomes = set()
    for name in ("a.wav", "a.flac", "a.ogg", "a.mp3", "a.mp4"):
        path = tmp_path / name
        if name == "a.mp4":
            clip(path, FRAMES, sound=tone(2.0))
        else:
            soundfile.write(path, tone(1.0), 16_000)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            broken = whole.copy()
            # Half of the hits go to the header, where they do most harm.
            places = np.concatenate([rng.integers(0, min(len(whole), 120), 3), rng.integers(0, len(whole), 3)])
            broken[places] = rng.integers(0, 256, 6)
            path.write_bytes(broken.tobytes())
            try:
                outcomes.add(load_audio(path).dtype.name)
            except MediaError as error:
                outcomes.add(error.cause)
    assert outcomes <= {"float32", *CAUSES}
    assert len(outcomes) > 2


def test_channels_that_change_on_the_way(tmp_path: Path) -> None:
    """ADTS files may be joined as they are: two channels, then one, as broadcasts do between programmes."""
    joined = tmp_path / "a.aac"
    for layout, channels in (("stereo", 2), ("mono", 1)):
        part = tmp_path / f"{layout}.aac"
        with av.open(str(part), "w") as container:
            stream: Any = container.add_stream("aac", rate=16_000, layout=layout)
            wave = np.ascontiguousarray(np.tile(tone(1.0), (channels, 1)))
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        with joined.open("ab") as file:
            file.write(part.read_bytes())
    wave = load_audio(joined)
    assert len(wave) == pytest.approx(32_000, abs=4 * 1024)  # each part is padded to whole AAC frames of 1024
    for half in (wave[4_000:12_000], wave[-12_000:-4_000]):
        assert pitch_of(half) == pytest.approx(440, abs=5)  # bins of 2 Hz
