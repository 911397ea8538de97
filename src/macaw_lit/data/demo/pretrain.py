"""Trains the demo's tiny CLIP, Whisper and LLaMA on the world's captions and texts, in place of downloaded weights.

`python -m macaw_lit.data.demo.pretrain [root=data/demo] [seed=0] [steps=…]` writes `weights/clip.safetensors`,
`weights/whisper.pt` and the folder `weights/llama` in the formats that open_clip, OpenAI and transformers publish, so
that training loads them as it loads real ones. Captions are the encoders' only supervision: a throwaway head must tell
from the features which words and pairs of words ("red circle", "moves fast") stand in a medium's captions. The language
model never meets a medium: it learns to answer questions about captions that it reads (see `reading`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.managers import ValueProxy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from macaw_lit.cli import conf_dir
from macaw_lit.data.demo.arguments import read_arguments, run
from macaw_lit.data.demo.phrases import RARE, Captions, avsd_captions, coco_captions, targets, vocabulary
from macaw_lit.data.demo.reading import teach_reading
from macaw_lit.data.demo.tokenizer import MEDIA_TOKENS
from macaw_lit.data.media import has_audio, load
from macaw_lit.encoders.base import Encoder
from macaw_lit.encoders.clip import ClipEncoder
from macaw_lit.encoders.whisper import WhisperEncoder
from macaw_lit.errors import DataError
from macaw_lit.llms.hf import HFCausalLM
from macaw_lit.training.optim import MuonAdamW, cosine_with_warmup
from macaw_lit.types import Medium

VERSION = 5
"""Raised whenever the same settings give other weights."""

FRAMES = 6
HIDDEN = 192  # channels of the throwaway heads
_SPLITS = {"train": ("train", "train"), "val": ("val", "valid")}  # as COCO and as DSTC name them

Inputs = Float[Tensor, "n ..."]
Job = Callable[[Path, int, int, "ValueProxy[float]"], list[dict[str, Any]]]


class Head(nn.Module):
    """A convolution over positions, as an aligner has, then the phrases: from any place, or from places in order."""

    def __init__(self, dim: int, positions: int, phrases: int, kernel: int, stride: int, anywhere: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, HIDDEN, kernel, stride)
        self.anywhere = anywhere
        places = 1 if anywhere else (positions - kernel) // stride + 1
        self.tell = nn.Linear(HIDDEN * places, phrases)

    def forward(self, features: Float[Tensor, "n s e"]) -> Float[Tensor, "n p"]:
        tokens = self.conv(features.transpose(1, 2))  # [N, HIDDEN, places]
        # From any place without a nonlinearity, as Eq. 3: what the head can tell, an aligner can read.
        logits: Tensor = (
            self.tell(tokens.transpose(1, 2)).amax(1) if self.anywhere else self.tell(F.gelu(tokens).flatten(1))
        )
        return logits


@dataclass(frozen=True)
class Lesson:
    """One kind of medium to learn: training and held-out encoder inputs, and which phrases are said of each."""

    medium: Medium
    phrases: list[str]
    inputs: dict[str, Inputs]
    said: dict[str, Float[Tensor, "n p"]]
    head: Head
    batch: int

    def logits(self, encoder: Encoder, values: Inputs) -> Float[Tensor, "n p"]:
        pictures = values.flatten(0, 1) if self.medium == "video" else values
        features = encoder(pictures.float()).reshape(len(values), -1, encoder.dim)
        logits: Tensor = self.head(features)
        return logits

    @torch.no_grad()
    def score(self, encoder: Encoder) -> list[dict[str, Any]]:
        """F1 over held-out media of all words, and of all pairs of words; a positive logit tells a phrase."""
        told = torch.cat([self.logits(encoder, values) for values in self.inputs["val"].split(128)]) > 0
        said = self.said["val"] > 0
        pairs = torch.tensor([" " in phrase for phrase in self.phrases], dtype=torch.bool)
        return [
            {
                "what": f"{name} of {self.medium} captions",
                "heldout": len(said),
                "measure": "F1",
                "score": float(2 * (told & said)[:, chosen].sum() / (told[:, chosen].sum() + said[:, chosen].sum())),
            }
            for name, chosen in (("words", ~pairs), ("pairs", pairs))
        ]


def pretrain(root: Path, seed: int = 0, steps: int = 900) -> bool:
    """Writes `root/weights`, unless it is there already with the same settings: then False, at once.

    Raises:
        DataError: `root` is no demo world, or one too small to learn from.
    """
    world = root / "world.json"
    if not world.is_file():
        raise DataError(f"{root} is no demo world (no world.json): run python -m macaw_lit.data.demo.render first")
    settings = {"version": VERSION, "seed": seed, "steps": steps, "world": json.loads(world.read_text("utf-8"))}
    record = root / "weights" / "pretraining.json"
    if record.is_file() and json.loads(record.read_text("utf-8"))["settings"] == settings:
        return False
    record.parent.mkdir(exist_ok=True)
    record.unlink(missing_ok=True)  # written last: its presence says that the weights are complete
    jobs = {"pictures": _pretrain_clip, "sounds": _pretrain_whisper, "language": _pretrain_llama}
    scores = _run_side_by_side(jobs, root, seed, steps)
    record.write_text(json.dumps({"settings": settings, "scores": scores}, indent=2) + "\n", encoding="utf-8")
    _print(scores)
    return True


def _run_side_by_side(jobs: Mapping[str, Job], root: Path, seed: int, steps: int) -> list[dict[str, Any]]:
    """Two processes of one thread: at these sizes two threads in one process gain nothing."""
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, context) as pool, Progress() as progress:
        done = [manager.Value("d", 0.0) for _ in jobs]
        bars = [progress.add_task(name, total=1.0) for name in jobs]
        running = [pool.submit(job, root, seed, steps, share) for job, share in zip(jobs.values(), done, strict=True)]
        while wait(running, timeout=0.5).not_done:
            for bar, share in zip(bars, done, strict=True):
                progress.update(bar, completed=share.value)
        return [score for job in running for score in job.result()]


def _pretrain_clip(root: Path, seed: int, steps: int, done: ValueProxy[float]) -> list[dict[str, Any]]:
    """Trains the encoder of pictures and frames."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    encoder = ClipEncoder(**_sizes("encoder", "clip_tiny"))
    seen = {split: coco_captions(root / f"coco/annotations/captions_{split}2017.json") for split in _SPLITS}
    watched = {
        split: avsd_captions(root / f"avsd/{name}_set4DSTC7-AVSD.json", "caption")
        for split, (_, name) in _SPLITS.items()
    }
    quadrant, frame = encoder.seq_len // 4, encoder.seq_len
    lessons = [
        _lesson("image", encoder, _named(seen, lambda split, name: root / f"coco/{split}2017/{name}"),
                kernel=quadrant, stride=quadrant, anywhere=True, batch=24),
        _lesson("video", encoder, _named(watched, lambda _, name: _video(root, name)),
                kernel=4 * frame, stride=frame, anywhere=False, batch=8),
    ]  # fmt: skip
    scores = _learn(encoder, lessons, steps, done)
    state = {f"visual.{name}": tensor.contiguous() for name, tensor in encoder.visual.state_dict().items()}
    save_file(state, root / "weights" / "clip.safetensors")
    return scores


def _pretrain_whisper(root: Path, seed: int, steps: int, done: ValueProxy[float]) -> list[dict[str, Any]]:
    """Trains the encoder of sounds."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    encoder = WhisperEncoder(**_sizes("encoder", "whisper_tiny"))
    heard = {}
    for split, (name, dstc) in _SPLITS.items():
        sounds = coco_captions(root / f"audio/captions_{name}.json")
        tracks = avsd_captions(root / f"avsd/{dstc}_set4DSTC7-AVSD.json", "summary")
        heard[split] = {str(root / f"audio/{name}/{file}"): own for file, own in sounds.items()} | {
            str(_video(root, video)): own for video, own in tracks.items() if has_audio(_video(root, video))
        }
    lessons = [_lesson("audio", encoder, heard, kernel=24, stride=24, anywhere=False, batch=32)]
    scores = _learn(encoder, lessons, steps // 2, done)
    dims = {"n_mels": encoder.input_shape[0], "n_audio_ctx": encoder.seq_len, "n_audio_state": encoder.dim}
    state = {f"encoder.{name}": tensor for name, tensor in encoder.encoder.state_dict().items()}
    torch.save({"dims": dims, "model_state_dict": state}, root / "weights" / "whisper.pt")
    return scores


def _pretrain_llama(root: Path, seed: int, steps: int, done: ValueProxy[float]) -> list[dict[str, Any]]:
    """Teaches the language model to read."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    sizes = _sizes("llm", "llama_tiny", "tokenizer")
    llm = HFCausalLM(tokenizer=str(root / "tokenizer"), delimiters=MEDIA_TOKENS, **sizes)
    score = teach_reading(llm, root, seed, steps // 3, done)
    llm.model.save_pretrained(root / "weights" / "llama")
    return [score]


def _learn(encoder: Encoder, lessons: Sequence[Lesson], steps: int, done: ValueProxy[float]) -> list[dict[str, Any]]:
    """Trains encoder and heads on a batch of every lesson at once; returns the held-out scores."""
    model = nn.ModuleList([encoder, *(lesson.head for lesson in lessons)])
    optimizer = MuonAdamW(model, lr=4e-3, adamw_lr=2e-3, weight_decay=0.01)
    schedule = cosine_with_warmup(optimizer, steps, warmup_ratio=0.05)
    for step in range(steps):
        loss = torch.zeros(())
        for lesson in lessons:
            chosen = torch.randint(len(lesson.said["train"]), (lesson.batch,))
            logits = lesson.logits(encoder, lesson.inputs["train"][chosen])
            loss = loss + F.binary_cross_entropy_with_logits(
                logits, lesson.said["train"][chosen], reduction="sum"
            ) / len(chosen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 9 or step + 1 == steps:
            done.value = (step + 1) / steps
    return [score for lesson in lessons for score in lesson.score(encoder)]


def _lesson(
    medium: Medium,
    encoder: Encoder,
    captions: dict[str, Captions],
    kernel: int,
    stride: int,
    anywhere: bool,
    batch: int,
) -> Lesson:
    phrases = vocabulary(captions["train"])
    if not phrases:
        raise DataError(
            f"{len(captions['train'])} {medium} files with captions: no phrase is said of {RARE} of them; "
            "render a larger world"
        )
    positions = encoder.seq_len * (FRAMES if medium == "video" else 1)
    return Lesson(
        medium,
        phrases,
        {split: torch.stack([_inputs(path, medium, encoder) for path in own]) for split, own in captions.items()},
        {split: targets(own, phrases) for split, own in captions.items()},
        Head(encoder.dim, positions, len(phrases), kernel, stride, anywhere),
        batch,
    )


def _inputs(path: str, medium: Medium, encoder: Encoder) -> Inputs:
    """Encoder input of one file, in half precision because all of them are kept in memory."""
    if medium == "video":
        return torch.stack([encoder.transform(frame) for frame in load(path, medium, FRAMES)]).half()
    return encoder.transform(load(path, medium)).half()


def _named(captions: dict[str, Captions], path: Callable[[str, str], Path]) -> dict[str, Captions]:
    return {split: {str(path(split, name)): said for name, said in own.items()} for split, own in captions.items()}


def _video(root: Path, name: str) -> Path:
    return root / "charades" / "Charades_v1_480" / f"{name}.mp4"


def _sizes(group: str, name: str, *without: str) -> dict[str, Any]:
    """Arguments of the part that `conf/<group>/<name>.yaml` configures, so that the weights fit it."""
    sizes: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    return {key: value for key, value in sizes.items() if key not in {"_target_", *without}}


def _print(scores: Sequence[dict[str, Any]]) -> None:
    table = Table(title="pretrained on captions, measured on held-out ones")
    for column in ("what", "heldout", "measure", "score"):
        table.add_column(column, justify="right" if column in ("heldout", "score") else "left")
    for score in scores:
        table.add_row(score["what"], str(score["heldout"]), score["measure"], f"{score['score']:.3f}")
    Console().print(table)


def main(arguments: list[str]) -> None:
    """Pretrains by `key=value` arguments."""
    options: dict[str, Any] = read_arguments(arguments, {"root": Path("data/demo"), "seed": 0, "steps": 900})
    trained = pretrain(**options)
    print(f"{options['root']}/weights: {'written' if trained else 'complete with these settings, nothing to do'}")


if __name__ == "__main__":
    run(main)
