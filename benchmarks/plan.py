"""Holds the memory that `macaw_lit.plan` predicts against what training takes on this machine's CPU; prints Markdown.

    python benchmarks/plan.py [case …]

Each case trains two steps with Lightning in a process of its own. Measured is the greatest anonymous resident memory
(`RssAnon`; pages of files come and go with what other processes need) less what was resident before the model was
built, when everything had been imported and a tiny model had been trained. It is read after every operation of torch,
by the process itself, and every two milliseconds from outside, to see into operations. Blocks of 64 KiB and more go
back to the kernel as soon as they are freed (`mallopt`), so that no allocator's habits are counted. Linux, no swap.
"""

import ctypes
import gc
import logging
import sys
import tempfile
import warnings
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from macaw_lit.cli import conf_dir
from macaw_lit.data.demo.tokenizer import train_tokenizer
from macaw_lit.planning.plan import make_plan
from macaw_lit.planning.step import fullest_row
from macaw_lit.training.module import MacawModule
from macaw_lit.training.optim import adamw
from macaw_lit.types import IGNORE, Batch, Media

MIB = 2**20
M_MMAP_THRESHOLD = -3  # of malloc.h
ADAPTED = ("adapt=align", "adapt=lora", "adapt=qlora")
SHAPING = (*ADAPTED, "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed")
BASE = [
    "trainer=cpu",
    "encoder@model.encoders.vision=clip_tiny",
    "encoder@model.encoders.hearing=whisper_tiny",
    "model.modalities.image.aligner={kernel: 4, stride: 4}",
    "model.modalities.video.aligner={kernel: 16, stride: 16}",
    "model.modalities.audio.aligner={kernel: 24, stride: 24}",
    "callbacks=none",
]
CLIP = ["image_size=112", "width=384", "layers=6", "heads=6", "patch_size=16", "patch_order=raster"]
LARGER = [f"model.encoders.vision.{each}" for each in CLIP] + [
    "model.encoders.hearing.n_ctx=500",
    "model.encoders.hearing.width=256",
    "model.encoders.hearing.layers=4",
    "model.encoders.hearing.heads=4",
]


def sizes(width: int, layers: int, vocabulary: int, rows: int, length: int, *more: str) -> list[str]:
    """Overrides of a case."""
    llm = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": width * 11 // 4,
        "vocab_size": vocabulary,
    }
    given = [f"unnamed_llm.{name}={value}" for name, value in llm.items()]
    return [*BASE, *given, f"data.batch_size={rows}", f"data.preprocessor.max_length={length}", *more]


CASES = {
    "wide": sizes(768, 6, 8_000, 2, 128),
    "deep": sizes(512, 12, 4_000, 2, 128),
    "large vocabulary": sizes(384, 4, 32_000, 2, 128),
    "large vocabulary, many rows": sizes(256, 2, 32_000, 8, 128),
    "long rows": sizes(384, 6, 4_000, 2, 512),
    "many rows": sizes(384, 6, 4_000, 12, 96),
    "activations lead": sizes(256, 8, 2_000, 8, 256),
    "few of the positions bear loss": sizes(384, 4, 16_000, 6, 256, "row.response=32"),
    "larger encoders": sizes(384, 4, 4_000, 4, 96, *LARGER),
    "larger encoders, frozen": sizes(384, 4, 4_000, 4, 96, *LARGER, "adapt=align", "model.adapt.llm=full"),
    "aligners alone": sizes(512, 8, 8_000, 4, 128, "adapt=align"),
    "LoRA": sizes(512, 8, 8_000, 4, 128, "adapt=lora"),
    "QLoRA": sizes(512, 8, 8_000, 4, 128, "adapt=qlora"),
    "QLoRA, bf16-mixed": sizes(512, 8, 8_000, 4, 128, "adapt=qlora", "trainer.precision=bf16-mixed"),
    "most is weights, in full": sizes(1024, 8, 4_000, 1, 64),
    "most is weights, LoRA": sizes(1024, 8, 4_000, 1, 64, "adapt=lora"),
    "most is weights, QLoRA": sizes(1024, 8, 4_000, 1, 64, "adapt=qlora"),
    "Macaw with normalised keys": sizes(384, 4, 32_000, 2, 96, "aligner=macaw_matched"),
    "heads over the table": sizes(512, 4, 16_000, 2, 96, "aligner=macaw_mha", "model.aligner.heads=8"),
    "accumulated twice": sizes(512, 6, 8_000, 3, 128, "trainer.accumulate_grad_batches=2"),
    "bf16-mixed": sizes(512, 6, 8_000, 4, 128, "trainer.precision=bf16-mixed"),
}


def composed(overrides: list[str]) -> dict[str, Any]:
    """The settings of `macaw_lit.plan`."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("plan", overrides=["model.llm.tokenizer=null", *overrides])
    settings: Any = OmegaConf.to_container(cfg)
    return {**settings, "model": OmegaConf.to_container(cfg.model, resolve=True)}


def train(settings: dict[str, Any], folder: Path) -> None:
    """Two optimizer steps of full batches."""
    model = {name: part for name, part in settings["model"].items() if name not in ("pretrained", "adapt")}
    model["llm"] |= {"tokenizer": str(folder), "config": settings["unnamed_llm"]}
    module = MacawModule(model, partial(adamw, lr=1e-4, weight_decay=0.0), adapt=settings["model"]["adapt"])
    module.loss_mean = "microbatches"
    module.configure_model()
    steps = settings["trainer"]["accumulate_grad_batches"]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        precision=settings["trainer"]["precision"],
        gradient_clip_val=settings["trainer"]["gradient_clip_val"],
        accumulate_grad_batches=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([full_batch(module, settings) for _ in range(2 * steps)], batch_size=None))


def full_batch(module: MacawModule, settings: dict[str, Any]) -> Batch:
    """Random rows of the plan's sizes."""
    rows, specs = settings["data"]["batch_size"], module.model.specs()
    row = fullest_row(specs, settings["data"]["preprocessor"]["max_length"], **settings["row"])
    ids = torch.randint(len(module.model.llm.tokenizer), (rows, row.tokens))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, -1] = False
    labels = ids.clone()
    labels[:, : row.tokens - row.response] = IGNORE
    media, first = {}, 2
    for kind, spec in specs.items():
        slots = torch.zeros_like(mask)
        slots[:, first : first + spec.num_tokens] = True
        first += spec.num_tokens + 2
        media[kind] = Media(torch.randn(rows, *spec.shape), slots)
    return Batch(ids, mask, labels, media, [""] * rows)


def resident(process: int | str = "self") -> int:
    """Anonymous resident memory of a process in bytes; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


class Watch(TorchDispatchMode):
    """Reads the memory of this process after every operation."""

    peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.peak = max(self.peak, resident())
        return made


def compare(case: str, results: Any) -> None:
    """Plan the case, then train it: what is needed, when, by cause; what was resident before, and at the most."""
    plan = make_plan(composed(CASES[case]))
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(["a b"], Path(folder))
        settings = composed(CASES[case])
        train(composed([*sizes(64, 1, 2_000, 1, 64), *(each for each in CASES[case] if each in SHAPING)]), Path(folder))
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = resident()
        with Watch() as watch:
            train(settings, Path(folder))
        results.put((plan.needed, plan.moment, plan.memory, before, watch.peak))


def main(cases: list[str]) -> None:
    """Print a row per case."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 65_536)
    processes = get_context("fork")  # what is imported is imported once
    print("| case | largest causes, MiB | moment | predicted, MiB | measured, MiB | ratio |\n|---|---|---|---|---|---|")
    for case in cases or CASES:
        results = processes.SimpleQueue()
        process = processes.Process(target=compare, args=(case, results))
        process.start()
        outside = 0
        while process.is_alive():
            outside = max(outside, resident(str(process.pid)))
            process.join(0.002)
        if process.exitcode:
            raise SystemExit(f"{case}: exit code {process.exitcode}")
        needed, moment, memory, before, inside = results.get()
        measured = max(inside, outside) - before
        causes = sorted(memory, key=lambda cause: -memory[cause])[:3]
        largest = ", ".join(f"{cause} {memory[cause] / MIB:,.0f}" for cause in causes)
        figures = f"{needed / MIB:,.0f} | {measured / MIB:,.0f} | {needed / measured:.3f}"
        print(f"| {case} | {largest} | {moment} | {figures} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
