"""Real media files, a byte-level tokenizer and small specs for the tests of the data side."""

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from macaw_lit.types import MediaSpec


def write_clip(
    path: Path,
    frames: list[np.ndarray],
    *,
    fps: int = 10,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    turns: int = 0,
) -> Path:
    """A video of uint8 [H,W,3] frames with `sound` float32 [samples] as AAC, shown after quarter `turns` clockwise."""
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(codec, rate=fps, options=codec_options or {"crf": "10"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        if turns:
            video.set_display_rotation(-90 * turns)
        audio: Any = container.add_stream("aac", rate=rate, layout="mono") if sound is not None else None
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, 0 if sound is None else len(sound), 1024):
            part = av.AudioFrame.from_ndarray(sound[None, start : start + 1024].copy(), format="fltp", layout="mono")
            part.sample_rate, part.pts = rate, start
            container.mux(audio.encode(part))
        if audio is not None:
            container.mux(audio.encode())
    return path


@pytest.fixture
def clip() -> Callable[..., Path]:
    return write_clip


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a JPEG of one grey level."""

    def write(level: int) -> Path:
        path = tmp_path / f"grey{level}.jpg"
        Image.new("RGB", (8, 8), (level, level, level)).save(path)
        return path

    return write


@pytest.fixture
def tone(tmp_path: Path) -> Callable[..., Path]:
    """Writes a WAV of 440 Hz, 0.1 s, of a given loudness."""

    def write(loudness: float) -> Path:
        path = tmp_path / f"tone{loudness}.wav"
        samples = loudness * np.sin(np.arange(1600) * 2 * np.pi * 440 / 16_000) * 32_767
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
        return path

    return write


CONTROL = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "</image>", "<video>", "</video>", "<audio>", "</audio>"]


def train_tokenizer(control: list[str] = CONTROL, **names: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens; `names` replace the roles of control tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = ["### Instruction:\nWhat colour is the circle?\n\n### Response:\nThe circle is red."] * 3
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=control)
    core.train_from_iterator(text, trainer)
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | names
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=control[4:], **roles)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


def picture_values(picture: np.ndarray) -> torch.Tensor:
    """The mean colour, spread over [3,4,4]: it identifies the picture."""
    return torch.from_numpy(picture.astype(np.float32).mean((0, 1)) / 255)[:, None, None].expand(3, 4, 4).clone()


def sound_values(sound: np.ndarray) -> torch.Tensor:
    """The loudness, spread over [2,5]."""
    return torch.full((2, 5), float(np.abs(sound).max()))


@pytest.fixture
def specs() -> dict[str, MediaSpec]:
    return {
        "image": MediaSpec("image", picture_values, 3, (3, 4, 4)),
        "video": MediaSpec("video", picture_values, 4, (2, 3, 4, 4), frames=2),
        "audio": MediaSpec("audio", sound_values, 2, (2, 5)),
    }
