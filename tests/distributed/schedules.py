"""One process of trainings whose rows are dealt out as unfairly as can be: `schedules.py KINDS STEPS TOKENIZER OUT`.

KINDS are strategies joined by commas, or such as `plain4`, which does alone what four processes do.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from lightning import Callback, LightningDataModule, Trainer
from rank import dealing_out, end_with_parent, read, trainer_for
from torch.utils.data import DataLoader

from conftest import Row, tiny_batch, tiny_sizes
from macaw_lit.data.datamodule import Source
from macaw_lit.model import Macaw
from macaw_lit.training.callbacks import Ledger
from macaw_lit.training.module import MacawModule
from macaw_lit.types import IGNORE, Batch

KINDS: tuple[dict[str, int], ...] = ({"image": 1}, {"video": 1, "audio": 1}, {}, {"image": 2, "audio": 1})
Dealt = tuple[list[Row], bool]
"""A process's rows at a step, and whether they have a response to learn."""


def seeds(step: int, rank: int, rows: int = 2) -> range:
    return range(1000 * step + 10 * rank, 1000 * step + 10 * rank + rows)


def text_only(step: int, rank: int, world: int) -> Dealt:
    """The first process never meets a medium; the others always do, all at once."""
    kinds = {"image": 1, "video": 1, "audio": 1} if rank else {}
    return [(seed, kinds) for seed in seeds(step, rank)], True


def alternating(step: int, rank: int, world: int) -> Dealt:
    """Another kind at every step, and never the same in two neighbouring processes."""
    return [(seed, KINDS[(step + rank) % 4]) for seed in seeds(step, rank)], True


def silent(step: int, rank: int, world: int) -> Dealt:
    """One process, in turns, has no response token; at every seventh step none has any."""
    rows, _ = alternating(step, rank, world)
    return rows, step % 7 != 6 and step % world != rank


def uneven(step: int, rank: int, world: int) -> Dealt:
    """From one row to three."""
    return [(seed, KINDS[seed % 4]) for seed in seeds(step, rank, 1 + (step + rank) % 3)], True


SCHEDULES: dict[str, Callable[[int, int, int], Dealt]] = {
    "text_only": text_only,
    "alternating": alternating,
    "silent": silent,
    "uneven": uneven,
    "generating": alternating,
}


class Scheduled(LightningDataModule):
    """Batches of a schedule: those of one process, or of all at once where one process stands for `world`."""

    def __init__(self, model: Macaw, name: str, steps: int, world: int) -> None:
        super().__init__()
        self.model, self.name, self.steps, self.world = model, name, steps, world

    def _batches(self, steps: range) -> DataLoader[Batch]:
        assert self.trainer is not None
        ranks = range(self.world) if self.trainer.world_size == 1 else [self.trainer.global_rank]
        batches = []
        for step in steps:
            dealt = [SCHEDULES[self.name](step, rank, self.world) for rank in ranks]
            batch = tiny_batch(self.model, [row for rows, _ in dealt for row in rows])
            learned = torch.tensor([learns for rows, learns in dealt for _ in rows])
            batch.labels[~learned] = IGNORE
            batches.append(batch)
        return DataLoader(batches, batch_size=None)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._batches(range(self.steps))

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        return self._batches(range(self.steps, self.steps + 2)) if self.name == "generating" else []


class Generating(MacawModule):
    """Answers in validation too, to prompts and at lengths that differ between processes."""

    def __init__(self, *arguments: Any, world: int) -> None:
        super().__init__(*arguments)
        self.world = world
        self.answers: dict[str, list[list[int]]] = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        ranks = range(self.world) if self.trainer.world_size == 1 else [self.trainer.global_rank]
        for rank in ranks:
            rows, _ = alternating(batch_idx, rank, self.world)
            prompts = tiny_batch(self.model, rows[: 1 + rank % 2], "left")
            ids = self.model.generate(prompts, max_new_tokens=2 + 3 * rank)
            self.answers[f"{self.trainer.global_step}/{batch_idx}/{rank}"] = ids.tolist()
        super().validation_step(batch, batch_idx)


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Steps in proportion to the gradient, as AdamW does not, and small enough that rounding does not grow."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)


def fit(out: Path, kind: str, module: MacawModule, data: Any, **settings: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    losses = Losses()
    callbacks = [Ledger(), losses]
    trainer = trainer_for(
        kind, out, callbacks=callbacks, enable_checkpointing=False, num_sanity_val_steps=0, **settings
    )
    trainer.fit(module, data)
    if trainer.is_global_zero:
        module.trained.save_pretrained(out / "model")
        (out / "losses.json").write_text(json.dumps(losses.losses))
    if isinstance(module, Generating):
        (out / f"answers{trainer.global_rank}.json").write_text(json.dumps(module.answers))


def rows_of(count: int) -> Iterator[Any]:
    return islice(read(), count)


def main(kind: str, steps: int, tokenizer_folder: Path, out: Path, world: int) -> None:
    sizes = tiny_sizes(tokenizer_folder)
    blueprint = Macaw.from_config(sizes)
    each = 5 if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 5 * world
    for name in SCHEDULES:
        torch.manual_seed(0)
        module = Generating(sizes, sgd, world=world) if name == "generating" else MacawModule(sizes, sgd)
        data = Scheduled(blueprint, name, steps, world)
        fit(out / name, kind, module, data, max_epochs=1, val_check_interval=max(1, steps // 2))
    for name, count in (("dealt", 24), ("left_over", 25)):  # 24: batches of 5, 5, 2 or 5, 1; of 25 one is left out
        torch.manual_seed(0)
        source = Source(partial(rows_of, count))
        dealt = dealing_out(blueprint, source, source, each)
        fit(out / name, kind, MacawModule(sizes, sgd), dealt, max_steps=steps, accumulate_grad_batches=2)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    words, steps, tokenizer, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    for word in words.split(","):
        world = int(word.removeprefix("plain")) if word.startswith("plain") else int(os.environ["WORLD_SIZE"])
        main(word.rstrip("0123456789") if word.startswith("plain") else word, steps, tokenizer, out / word, world)
