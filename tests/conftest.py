"""What tests share: one thread, no network, real media files, a byte-level tokenizer, a tiny model of all parts."""

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline", MPLBACKEND="Agg", TERM="dumb")

import logging
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from macaw_lit.data.collate import Collator
from macaw_lit.data.demo.pretrain import pretrain
from macaw_lit.data.demo.render import Sizes, render
from macaw_lit.files import write_whole
from macaw_lit.model import Macaw
from macaw_lit.types import IGNORE, Batch, Example

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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


@pytest.fixture(scope="session")
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
    """Byte-level BPE of at most 320 tokens; `names` replace the roles of control tokens."""
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


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


TINY_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.18,  # 1/√hidden_size, so that a random model has an opinion
}


def _part(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"macaw_lit.{target}", **arguments}


def tiny_sizes(tokenizer_folder: Path) -> dict[str, Any]:
    """A whole model of 80 thousand weights: 16 patches, 2 frames, 0.16 s of sound; 4, 3 and 3 soft tokens."""
    return {
        "encoders": {
            "vision": _part("encoders.clip.ClipEncoder", image_size=16, patch_size=4, width=16, layers=2, heads=2),
            "hearing": _part("encoders.whisper.WhisperEncoder", n_ctx=8, width=24, layers=1, heads=2),
        },
        "aligner": _part("aligners.macaw.MacawAligner", qk_norm=True),
        "llm": _part("llms.hf.HFCausalLM", tokenizer=str(tokenizer_folder), config=TINY_LLAMA),
        "modalities": {
            "image": {"encoder": "vision", "aligner": {"kernel": 4, "stride": 4}},
            "video": {"encoder": "vision", "frames": 2, "aligner": {"kernel": 16, "stride": 8}},
            "audio": {"encoder": "hearing", "aligner": {"kernel": 4, "stride": 2}},
        },
    }


@pytest.fixture
def sizes(tokenizer_folder: Path) -> dict[str, Any]:
    return tiny_sizes(tokenizer_folder)


@pytest.fixture
def model(sizes: dict[str, Any]) -> Macaw:
    return Macaw.from_config(sizes)


Row = tuple[int, dict[str, int]]
"""Seed of a row's content, and how many media of each kind it has."""


def tiny_row(model: Macaw, row: Row, predict: bool = False) -> Example:
    """BOS, media blocks, three to eight ids of prompt and, unless predicting, two to five of response with EOS."""
    seed, counts = row
    draw = torch.Generator().manual_seed(seed)
    tokenizer, specs = model.llm.tokenizer, model.specs()
    ids, slots, media = [tokenizer.bos_token_id], {}, {}
    for kind, count in counts.items():
        slots[kind] = []
        for _ in range(count):
            ids.append(tokenizer.convert_tokens_to_ids(f"<{kind}>"))
            slots[kind] += range(len(ids), len(ids) + specs[kind].num_tokens)
            ids += [tokenizer.pad_token_id] * specs[kind].num_tokens
            ids.append(tokenizer.convert_tokens_to_ids(f"</{kind}>"))
        media[kind] = torch.randn(count, *specs[kind].shape, generator=draw)
    prompt, response = (int(torch.randint(*span, (), generator=draw)) for span in ((3, 9), (2, 6)))
    text = torch.randint(len(CONTROL), len(tokenizer), (prompt + response,), generator=draw).tolist()
    ids += text[:prompt] if predict else [*text, tokenizer.eos_token_id]
    labels = [IGNORE] * (len(ids) - response - 1) + ids[len(ids) - response - 1 :]
    masks = {kind: torch.zeros(len(ids), dtype=torch.bool) for kind in slots}
    for kind, positions in slots.items():
        masks[kind][positions] = True
    return Example(torch.tensor(ids), None if predict else torch.tensor(labels), media, masks, f"tiny/{seed}")


def tiny_batch(
    model: Macaw, rows: Sequence[Row], side: Literal["left", "right"] = "right", row_length: int | None = None
) -> Batch:
    """Rows to train on, padded on the right or packed; or, with `side` left, prompts to continue."""
    collate = Collator(model.llm.tokenizer.pad_token_id, model.specs(), side, row_length)
    return collate([tiny_row(model, row, predict=side == "left") for row in rows])


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    return tiny_batch


@pytest.fixture(autouse=True)
def _log_handlers() -> Iterator[None]:
    """Hydra's commands leave a handler on the test's own stdout, which is closed when a later test logs."""
    before = [*logging.root.handlers]
    yield
    for handler in {*logging.root.handlers}.difference(before):
        if type(handler) in (logging.StreamHandler, logging.FileHandler):
            logging.root.removeHandler(handler)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls the `main` of a command in this process, as typed in the folder `cwd`: exit code, stdout and stderr."""

    def run(main: Callable[[], None], cwd: Path, *words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [main.__module__, *words])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # Lightning sets them; the test's end takes them back
            monkeypatch.setenv(name, "0")
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return run


@dataclass(frozen=True)
class TinyRun:
    """A demo in little: `root/data/demo` is the world, `folder` the run that `words` trained in `root`."""

    root: Path
    folder: Path
    words: list[str]
    stdout: str
    stderr: str


TINY_WORLD = Sizes(images=48, videos=32, sounds=24, texts=60, heldout=12)
TINY_WORDS = [
    "experiment=demo",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "data.batch_size=4",
    "data.num_workers=0",
    "evaluation.n=2",
    "evaluation.max_new_tokens=6",
]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """What `make train` does, with a small world and four steps: half a minute, once for all processes of a test run.

    Tests write beside it only, in folders of their own.
    """
    folder = tmp_path_factory.getbasetemp()
    root = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "tiny_run"
    with FileLock(f"{root}.lock"):
        if not (root / "stdout").is_file():  # written last
            part = root.with_suffix(".part")
            for left in (root, part):  # by a process that was ended half way
                shutil.rmtree(left, ignore_errors=True)
            render(part / "data" / "demo", sizes=TINY_WORLD, workers=1)
            pretrain(part / "data" / "demo", steps=4)
            part.rename(root)
            command = [sys.executable, "-m", "macaw_lit.train", *TINY_WORDS]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (root / "stderr").write_text(done.stderr)
            write_whole(root / "stdout", done.stdout)
    stdout, stderr = ((root / name).read_text() for name in ("stdout", "stderr"))
    return TinyRun(root, Path(stdout.splitlines()[-1]), TINY_WORDS, stdout, stderr)
