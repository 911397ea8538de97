"""Trains a random model of middle size with each trainer named, and prints Markdown: `python benchmarks/training.py`.

    python benchmarks/training.py --trainers gpu,deepspeed_zero2_fp16,deepspeed_zero3_fp16,fsdp_bf16 --steps 100
    python benchmarks/training.py --trainers cpu --steps 20 --set unnamed_llm.hidden_size=256 …

By default CLIP ViT-B/16 and Whisper-base at full size, a LLaMA of 16 layers of width 2048 and 32,007 words, the exact
aligners, and four rows of 512 tokens with a picture, a video and a sound each. Four batches of random values are
learnt by heart, so that the loss must fall. One process, on the first GPU. Speeds are of the last half of the steps.
"Predicted" is `macaw_lit.plan` without its reserve, "allocated" the most that torch's allocator gave out. MFU is of an
A100's peak, of an H100's with `--set peak_tflops=989`.
"""

import argparse
import csv
import sys
import tempfile
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from plan import composed, full_batch
from torch.utils.data import DataLoader

from macaw_lit.build import build_module, build_trainer, set_up
from macaw_lit.cli import conf_dir
from macaw_lit.data.demo.tokenizer import train_tokenizer
from macaw_lit.planning.plan import make_plan

GIB = 2**30
SIZES = ("hidden_size=2048", "num_hidden_layers=16", "num_attention_heads=16", "intermediate_size=5632")
BASE = [
    "experiment=macaw_7b",
    *(f"unnamed_llm.{size}" for size in SIZES),
    "optim.lr=1e-4",
    "trainer.devices=1",
    "trainer.accumulate_grad_batches=1",
    "trainer.max_epochs=-1",
    "trainer.limit_val_batches=0",
    "callbacks=[overflows,throughput]",
    "+trainer.enable_progress_bar=false",
    "+trainer.enable_checkpointing=false",
]


def run(trainer: str, steps: int, more: list[str], results: Any) -> None:
    """Train, and send the rows of `metrics.csv`, and bytes that were planned and used."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(["a b"], Path(folder))
        given = [f"trainer={trainer}", f"trainer.max_steps={steps}", f"trainer.log_every_n_steps={max(1, steps // 10)}"]
        words = [*BASE, *given, *more]
        settings = composed(words)
        words += [f"paths.root_dir={folder}", f"paths.run_dir={folder}/run", f"model.llm.tokenizer={folder}"]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("plan", overrides=words)
        with open_dict(cfg):
            cfg.model.llm.config = cfg.unnamed_llm
            cfg.callbacks.throughput.peak_tflops = (
                cfg.peak_tflops if settings["trainer"]["accelerator"] == "gpu" else None
            )
        set_up(cfg)
        module = build_module(cfg)
        with torch.device("meta"):
            blueprint = build_module(cfg)
            blueprint.configure_model()
        batches = [full_batch(blueprint, settings) for _ in range(4)]
        build_trainer(cfg).fit(module, DataLoader(batches, batch_size=None))
        plan = make_plan(settings)
        used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        with Path(folder, "run", "metrics.csv").open(newline="", encoding="utf-8") as file:
            results.put(([*csv.DictReader(file)], plan.needed - plan.memory.get("reserve", 0), used))


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    """What was logged under a name."""
    return [float(row[name]) for row in rows if row.get(name)]


def main() -> None:
    """Print a row per trainer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", default="gpu,deepspeed_zero2_fp16,deepspeed_zero3_fp16,fsdp_bf16")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, as for macaw_lit.plan")
    arguments = parser.parse_args()
    print(
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", f"torch {torch.__version__}", sep=", "
    )
    heads = ("trainer", "loss", "loss scale", "skipped", "samples/s", "tokens/s", "MFU", "predicted", "allocated")
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    processes = get_context("spawn")
    for trainer in arguments.trainers.split(","):
        results = processes.SimpleQueue()
        process = processes.Process(target=run, args=(trainer, arguments.steps, arguments.set, results))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{trainer}: exit code {process.exitcode}")
        rows, predicted, used = results.get()
        loss, scale, skipped = (column(rows, f"train/{name}") for name in ("loss", "loss_scale", "skipped_steps"))
        speeds = [column(rows, f"speed/{name}") for name in ("samples_per_s", "tokens_per_s", "mfu")]
        samples, tokens, mfu = (half[len(half) // 2 :] for half in speeds)
        cells = [
            trainer,
            f"{loss[0]:.2f} → {loss[-1]:.2f}",
            " → ".join(f"{value:g}" for value in dict.fromkeys(scale)),
            f"{skipped[-1]:.0f}" if skipped else "",
            f"{sum(samples) / len(samples):.2f}",
            f"{sum(tokens) / len(tokens):,.0f}",
            f"{sum(mfu) / len(mfu):.1%}" if mfu else "",
            f"{predicted / GIB:.2f} GiB",
            f"{used / GIB:.2f} GiB, {predicted / used:.3f}" if used else "not measured",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
