"""A zoo of media, whole, odd and damaged, with what the doctor is to find in each."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from macaw_lit.data.doctor.examine import Medium

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
CAUSES = {
    "none.jpg": "missing",
    "empty.jpg": "empty",
    "folder.jpg": "not_a_file",
    "text.jpg": "unreadable",
    "cut.jpg": "truncated",
    "cut.png": "truncated",
    "bomb.png": "too_large",
    "empty.mp4": "empty",
    "text.mp4": "unreadable",
    "cut.mp4": "truncated",
    "sound.mp4": "no_video",
    "long.mp4": "too_long",
    "text.wav": "unreadable",
    "cut.wav": "truncated",
    "nan.wav": "not_finite",
    "none.wav": "no_samples",
    "mute.m4a": "no_audio",
    "huge.wav": "truncated",
    "wide.wav": "too_large",
}
"""File name → cause, of the media that cannot be used."""

ODD: dict[str, tuple[str, ...]] = {
    "whole.jpg": (),
    "grey.jpg": (),
    "jpeg.png": ("wrong_extension",),
    "one.png": ("one_pixel",),
    "cmyk.jpg": ("cmyk",),
    "deep.png": ("sixteen_bit",),
    "palette.png": ("palette",),
    "moving.gif": ("palette", "animated"),
    "trail.jpg": (),
    "name\udcff.jpg": ("name_not_utf8",),
    "whole.mp4": (),
    "mute.mp4": ("no_sound",),
    "matroska.mp4": ("wrong_extension", "no_sound"),
    "fast.mp4": ("no_sound", "odd_rate"),
    "whole.wav": (),
    "flac.wav": ("wrong_extension",),
    "still.wav": ("silent",),
    "many.wav": ("odd_channels",),
    "slow.wav": ("odd_rate",),
}
"""File name → oddities, of those that can."""

KINDS = {"jpg": "image", "png": "image", "gif": "image", "mp4": "video", "wav": "audio", "m4a": "audio"}


@dataclass(frozen=True)
class Zoo:
    """The folder of the media, and what is to be found in each."""

    root: Path
    causes: dict[str, str]
    odd: dict[str, tuple[str, ...]]

    def medium(self, name: str) -> Medium:
        return Medium(KINDS[name.rpartition(".")[2]], str(self.root / name))


def _pictures(root: Path) -> None:
    picture = Image.fromarray(NOISE)
    picture.save(root / "whole.jpg", quality=95)
    picture.convert("L").save(root / "grey.jpg")
    picture.save(root / "jpeg.png", format="JPEG")
    picture.convert("CMYK").save(root / "cmyk.jpg")
    picture.convert("P").save(root / "palette.png")
    Image.new("RGB", (1, 1)).save(root / "one.png")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(root / "deep.png")
    frames = [Image.fromarray(np.roll(NOISE, shift)) for shift in range(3)]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    picture.save(root / "cut.png")
    for name in ("cut.jpg", "trail.jpg", "name\udcff.jpg"):
        (root / name).write_bytes((root / "whole.jpg").read_bytes())
    for name in ("cut.jpg", "cut.png"):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) * 2 // 3])
    with (root / "trail.jpg").open("ab") as file:
        file.write(b"\0" * 500)  # some cameras write more behind the end
    (root / "folder.jpg").mkdir()
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(100))) + _chunk(b"IEND", b"")
    (root / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _films(root: Path, clip: Callable[..., Path]) -> None:
    frames = [np.roll(NOISE, shift, axis=1) for shift in range(12)]
    tone = (0.3 * np.sin(np.arange(16_000) / 6)).astype(np.float32)
    clip(root / "whole.mp4", frames, sound=tone)
    clip(root / "mute.mp4", frames)
    clip(root / "mute.mp4", frames).with_suffix(".m4a").write_bytes((root / "mute.mp4").read_bytes())
    clip(root / "film.mkv", frames).rename(root / "matroska.mp4")
    clip(root / "fast.mp4", frames, fps=1000)
    data = (root / "whole.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(data[: len(data) // 2])
    soundfile.write(root / "flac.flac", tone, 16_000)
    (root / "flac.flac").rename(root / "sound.mp4")
    clip(root / "long.mp4", frames, fps=Fraction(1, 100))  # twenty minutes


def _sounds(root: Path) -> None:
    tone = (0.3 * np.sin(np.arange(16_000) / 6)).astype(np.float32)
    soundfile.write(root / "whole.wav", tone, 16_000)
    soundfile.write(root / "still.wav", 0 * tone, 16_000)
    soundfile.write(root / "none.wav", tone[:0], 16_000)
    soundfile.write(root / "slow.wav", tone, 1000)
    soundfile.write(root / "many.wav", np.tile(tone[:, None], (1, 12)), 16_000)
    soundfile.write(root / "flac.wav", tone, 16_000, format="FLAC")
    broken = tone.copy()
    broken[5000] = np.nan
    soundfile.write(root / "nan.wav", broken, 16_000, subtype="FLOAT")
    data = (root / "whole.wav").read_bytes()
    (root / "cut.wav").write_bytes(data[: len(data) // 2])
    (root / "huge.wav").write_bytes(data[:4] + struct.pack("<I", 2**32 - 100) + data[8:])
    soundfile.write(root / "wide.wav", np.zeros((100_000, 700), np.float32), 16_000, subtype="PCM_U8")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory, clip: Callable[..., Path]) -> Zoo:
    root = tmp_path_factory.mktemp("zoo")
    _pictures(root)
    _films(root, clip)
    _sounds(root)
    for name in ("empty.jpg", "empty.mp4"):
        (root / name).touch()
    for name in ("text.jpg", "text.mp4", "text.wav"):
        (root / name).write_text("no medium at all, but a text\n" * 20)
    return Zoo(root, CAUSES, ODD)
