"""How soon the demo's model learns with each aligner.

    make train
    python benchmarks/aligners.py --aligners macaw,macaw_matched --seeds 0,1,2

Trains `experiment=demo` whole for every aligner and seed, one after the other (seven to nine minutes each on one core),
and asks the held-out questions of the gating types every `--every` steps. An answer is right if greedy decoding would
give the whole response: every token of it is the likeliest after the ones before. Each run leaves a JSON file in
`--out` and is not repeated, so the command can be stopped and goes on; at the end it prints a Markdown table of all
the runs in `--out`, with the number of steps after which every gating type is at the bar (90 %) and stays there.
"""

import argparse
import json
import random
import statistics
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from macaw_lit.build import attach, build_data, build_module, build_trainer, heldout_samples, set_up
from macaw_lit.cli import conf_dir
from macaw_lit.data.collate import Collator
from macaw_lit.data.datamodule import MacawDataModule
from macaw_lit.evaluation.results import BAR, read_types
from macaw_lit.model import Macaw
from macaw_lit.types import IGNORE, Batch


class Accuracy(Callback):
    """Every so many steps, the share of held-out responses of each type that greedy decoding would give whole."""

    def __init__(self, questions: dict[str, list[Batch]], every: int) -> None:
        self.questions, self.every = questions, every
        self.curve: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self._ask(trainer.global_step, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._ask(trainer.global_step, module)

    @torch.no_grad()
    def _ask(self, step: int, module: LightningModule) -> None:
        module.eval()
        self.curve[step] = {
            name: float(torch.cat([right(module.model, batch) for batch in batches]).float().mean())
            for name, batches in self.questions.items()
        }
        module.train()


def right(model: Macaw, batch: Batch) -> torch.Tensor:
    """Which rows' responses are the likeliest token after token: bool of shape (B,)."""
    likeliest = model.llm(model.embed(batch), batch.attention_mask).logits[:, :-1].argmax(-1)
    wanted = batch.labels[:, 1:]
    return ((likeliest == wanted) | (wanted == IGNORE)).all(1)


def heldout_questions(data: MacawDataModule, types: Path, n: int) -> dict[str, list[Batch]]:
    """At most `n` questions of each gating type, the same for every run, in batches."""
    gating = {name for name, kind in read_types(types).items() if kind.gating}
    by_type = defaultdict(list)
    for sample in heldout_samples(data):
        if sample.meta.get("type") in gating:
            by_type[sample.meta["type"]].append(sample)
    collate = Collator(data.preprocess.pad, data.preprocess.specs, "right")
    questions = {}
    for name, samples in sorted(by_type.items()):
        drawn = random.Random(name).sample(samples, min(n, len(samples)))
        rows = [data.preprocess(sample) for sample in drawn]
        questions[name] = [collate(rows[start : start + 50]) for start in range(0, len(rows), 50)]
    return questions


def run(cfg: DictConfig, every: int, n: int) -> dict[str, Any]:
    """Train once and return the accuracy of each type by step."""
    set_up(cfg)
    module, data = build_module(cfg), build_data(cfg)
    attach(data, module)
    drop, data.preprocess.drop_media = data.preprocess.drop_media, 0.0
    accuracy = Accuracy(heldout_questions(data, Path(cfg.evaluation.types), n), every)
    data.preprocess.drop_media = drop
    set_up(cfg)  # what the questions drew is not to move training
    trainer = build_trainer(cfg)
    trainer.callbacks.append(accuracy)
    trainer.fit(module, data)
    return {"curve": accuracy.curve}


def steps_to_bar(curve: dict[str, dict[str, float]]) -> int | None:
    """The first measured step from which on every type is at the bar, or None."""
    reached = None
    for step, found in sorted(curve.items(), key=lambda entry: int(entry[0])):
        if min(found.values()) < BAR:
            reached = None
        elif reached is None:
            reached = int(step)
    return reached


def print_table(out: Path) -> None:
    """A row per aligner: seeds, steps to the bar, and what every type has at the end."""
    runs = defaultdict(dict)
    for path in sorted(out.glob("*.json")):
        aligner, _, seed = path.stem.rpartition("-")
        runs[aligner][seed] = json.loads(path.read_text(encoding="utf-8"))["curve"]
    print("| `aligner=` | seeds | steps to the bar | at the bar at the end | mean half-way | at the end |")
    print("|---|---|---|---|---|---|")
    for aligner, curves in runs.items():
        ends = [curve[max(curve, key=int)] for curve in curves.values()]
        middles = [curve[sorted(curve, key=int)[len(curve) // 2]] for curve in curves.values()]
        cells = [
            ", ".join(curves),
            ", ".join(str(steps_to_bar(curve) or "not reached") for curve in curves.values()),
            ", ".join(f"{sum(value >= BAR for value in end.values())} of {len(end)}" for end in ends),
            *(", ".join(f"{statistics.mean(found.values()):.3f}" for found in group) for group in (middles, ends)),
        ]
        print(f"| `{aligner}` | {' | '.join(cells)} |")


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("logs/aligners"))
    parser.add_argument("--aligners", default="macaw,macaw_qk_norm,macaw_matched,macaw_mha,linear,mlp,perceiver")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--every", type=int, default=100, help="steps between two measurements")
    parser.add_argument("--n", type=int, default=100, help="questions of a type")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, as for macaw_lit.train")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    for seed in arguments.seeds.split(","):
        for aligner in arguments.aligners.split(","):
            path = arguments.out / f"{aligner}-{seed}.json"
            if path.exists():
                continue
            print(f"{aligner}, seed {seed}", flush=True)
            choice = ["experiment=demo", f"aligner={aligner}", f"seed={seed}"]
            places = [f"paths.run_dir={arguments.out}", f"paths.root_dir={Path.cwd()}"]
            quiet = ["callbacks=progress", "logger=none", "+trainer.enable_checkpointing=false"]
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                cfg = compose("train", [*choice, *places, *quiet, *arguments.set])
            result = json.dumps(run(cfg, arguments.every, arguments.n))
            path.write_text(result + "\n", encoding="utf-8")
    print_table(arguments.out)


if __name__ == "__main__":
    main()
