"""Answered questions on real files: a JPEG, an MP4 with sound, a WAV, and what goes wrong with them."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from macaw_lit.evaluation.answers import Answered
from macaw_lit.types import MediaRef, Sample, Turn

RATE = 16000


def tone(seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 2000 * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=10)
        picture.width = picture.height = 64
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(10):
            pixels = np.full((64, 64, 3), (25 * number, 200, 0), np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        wave = av.AudioFrame.from_ndarray(tone()[None], "fltp", "mono")
        wave.sample_rate = RATE
        container.mux(sound.encode(wave))
        for stream in (picture, sound):
            container.mux(stream.encode(None))


def answered(question: str, answer: str, truth: str, kind: str, *media: MediaRef, given: str = "") -> Answered:
    turns = (Turn("user", question, media), Turn("assistant", truth))
    return Answered(Sample(turns, f"world/{kind}/0", "world", {"type": kind, "input": given}), answer)


@pytest.fixture
def items(tmp_path: Path) -> list[Answered]:
    picture, clip, wave = tmp_path / "a #1 <b>.jpg", tmp_path / "clip.mp4", tmp_path / "beep.wav"
    Image.new("RGB", (64, 64), (230, 20, 20)).save(picture)
    write_clip(clip)
    soundfile.write(wave, tone(), RATE)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return [
        answered(
            "What <script>alert(1)</script> & $x_1$?", "It is red.", "It is red.", "image.a", MediaRef("image", picture)
        ),
        answered("How fast?", "<b>Slow", "Fast.", "video.b", MediaRef("video", clip), MediaRef("audio", clip)),
        answered("What do you hear?", "", "A tone.", "audio.c", MediaRef("audio", wave)),
        answered("Reverse.", "b a", "b a", "text.d", given="a b"),
        answered("Broken?", "No.", "No.", "image.a", MediaRef("image", tmp_path / "broken.jpg")),
        answered("Gone?", "No.", "No.", "image.a", MediaRef("image", tmp_path / "gone.jpg")),
        answered("Same?", "Yes.", "Yes.", "image.a", MediaRef("image", picture), MediaRef("depth", picture)),
    ]
