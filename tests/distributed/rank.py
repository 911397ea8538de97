"""One process of a training, alone or beside others: `rank.py STRATEGY TOKENIZER_FOLDER OUT`, started by launch()."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["DS_ACCELERATOR"] = "cpu"

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch.utils.data import DataLoader

from conftest import tiny_batch, tiny_sizes
from macaw_lit.data.datamodule import MacawDataModule, Source
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import TrainingError
from macaw_lit.model import Macaw
from macaw_lit.training.adapt import merge
from macaw_lit.training.callbacks import Ledger
from macaw_lit.training.finite import StopAtOverflows
from macaw_lit.training.module import MacawModule
from macaw_lit.training.optim import adamw
from macaw_lit.training.strategies import FSDP2, ZeRO
from macaw_lit.types import IGNORE, Batch, Decoded, Sample, Turn

ROWS = 26  # of an epoch: two optimizer steps of 12, and one of the 2 that are left
STEPS = 24


class ZeROOnCPU(ZeRO):
    """Without the demand for a GPU, and with devices that have the numbers that DeepSpeed wants."""

    def setup_environment(self) -> None:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes minutes
        self.parallel_devices = [torch.device("cpu", index) for index in range(len(self.parallel_devices))]
        super(DeepSpeedStrategy, self).setup_environment()


def strategy(name: str) -> Any:
    if name.startswith("zero"):
        return ZeROOnCPU(stage=int(name[4:]), process_group_backend="gloo")
    kinds = {"ddp": DDPStrategy, "fsdp2": FSDP2}
    return kinds[name](process_group_backend="gloo") if name in kinds else "auto"


def trainer_for(kind: str, out: Path, **settings: Any) -> Trainer:
    """A trainer of this process and its like on CPUs, which writes nothing of its own accord."""
    return Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        strategy=strategy(kind),
        default_root_dir=out,
        gradient_clip_val=0.5,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"logger": False, **settings},
    )


def dealing_out(
    model: Macaw, train: Source, val: Source | None, batch_size: int, pack_rows: bool = False
) -> MacawDataModule:
    """The data module of one source for `model`."""
    sources = (None if source is None else {"made": source} for source in (train, val))
    data = MacawDataModule(*sources, partial(Preprocessor, max_length=256), batch_size, pack_rows=pack_rows)
    data.attach(model.llm.tokenizer, model.specs())
    return data


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Steps in proportion to the gradient: AdamW would hide a wrong scale, and follow signs that rounding can flip."""
    return torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.05, momentum=0.5)


def read() -> Iterator[Sample]:
    """Rows with a picture, a video and a sound, or nothing, and responses from one word to many."""
    for row in range(ROWS):
        draw = np.random.default_rng(row)
        image = Decoded("image", "made", draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        video = Decoded("video", "made", draw.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
        audio = Decoded("audio", "made", draw.standard_normal(2560).astype(np.float32))
        media = ((image,), (video, audio), ())[row % 3]
        turns = (Turn("user", f"{row}?", media), Turn("assistant", "word " * (1 + row % 5)))
        yield Sample(turns, f"made/{row}", "made")


class Schedule(LightningDataModule):
    """The first process has text alone, for ever; the second one changes media, and at times has nothing to learn."""

    def __init__(self, model: Macaw) -> None:
        super().__init__()
        kinds: list[dict[str, int]] = [{"image": 1}, {"video": 1, "audio": 1}, {}, {"image": 2, "audio": 1}]
        self.model = model
        self.rows = [
            ([(100 + step, {}), (200 + step, {})], [(300 + step, kinds[step % 4]), (400 + step, {})])
            for step in range(STEPS)
        ]

    def train_dataloader(self) -> DataLoader[Batch]:
        trainer = self.trainer
        assert trainer is not None
        batches = []
        for step, (first, second) in enumerate(self.rows):
            batch = tiny_batch(self.model, first + second)
            if step % 5 == 4:
                batch.labels[2:] = IGNORE
            if trainer.world_size == 2:  # padded alike, which changes nothing
                batch = tiny_batch(self.model, (first, second)[trainer.global_rank])
                if step % 5 == 4 and trainer.global_rank == 1:
                    batch.labels[:] = IGNORE
            batches.append(batch)
        return DataLoader(batches, batch_size=None)


def fit(
    out: Path,
    kind: str,
    sizes: dict[str, Any],
    data: Any,
    resume: Path | None = None,
    parts: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Trains from the same start whatever the strategy, and writes the model folder, a checkpoint and the ledger."""
    torch.manual_seed(0)
    module = MacawModule(sizes, sgd, **(parts or {}))
    saves = ModelCheckpoint(out, "{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = trainer_for(kind, out, callbacks=[Ledger(), saves], **settings)
    trainer.fit(module, data, ckpt_path=resume)
    if trainer.is_global_zero:
        merge(module.trained)
        module.trained.save_pretrained(out / "model")


def main(kind: str, tokenizer_folder: Path, out: Path) -> None:
    sizes = tiny_sizes(tokenizer_folder)
    blueprint = Macaw.from_config(sizes)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    dealt = partial(dealing_out, blueprint, Source(read), None)

    for steps in (1, 3):
        settings = {"max_epochs": 2, "accumulate_grad_batches": steps}
        fit(out / f"dealt{steps}", kind, sizes, dealt(12 // steps // world), **settings)
    if world > 1:  # packing changes neither the order nor the update, so a run may go on with it
        packed = dealt(12 // steps // world, pack_rows=True)
        fit(out / "resumed", kind, sizes, packed, out / "dealt3" / "step=4.ckpt", **settings)
    fit(out / "packed", kind, sizes, dealt(12 // world, pack_rows=True), max_epochs=2)
    fit(out / "schedule", kind, sizes, Schedule(blueprint), max_epochs=1)

    # What breaks elsewhere: a head tied to the embeddings, parts that are frozen, adapters, blocks computed again.
    sizes["llm"]["config"] = {**sizes["llm"]["config"], "tie_word_embeddings": True}
    recomputed = ("vision", "hearing", "llm") if world > 1 else ()
    parts: dict[str, Any] = {"adapt": {"vision": "frozen"}, "checkpointing": recomputed}
    fit(out / "frozen", kind, sizes, dealt(4 // world), None, parts, **settings)
    parts["adapt"] |= {"hearing": {"lora": {"r": 2}}, "llm": {"lora": {"r": 2, "alpha": 32}}}
    fit(out / "lora", kind, sizes, dealt(4 // world), None, parts, **settings)
    if world > 1:
        fit(out / "lora_resumed", kind, sizes, dealt(4 // world), out / "lora" / "step=4.ckpt", parts, **settings)
    for part in ("hearing", "llm"):
        parts["adapt"][part] = {"lora": {**parts["adapt"][part]["lora"], "bits": 4}}
    fit(out / "qlora", kind, sizes, dealt(4 // world), None, parts, **settings)
    if world > 1:
        fit(out / "qlora_resumed", kind, sizes, dealt(4 // world), out / "qlora" / "step=4.ckpt", parts, **settings)


def train_in_half(out: Path, sizes: dict[str, Any], stage: int) -> None:
    """fp16 from a scale that is too high; then with gradients that overflow at any scale, which must end it."""
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True  # it says no on a CPU, and does it all the same
    blueprint = Macaw.from_config(sizes)
    for case, scale in (("healthy", 24), ("broken", 3)):
        torch.manual_seed(0)
        module = MacawModule(sizes, partial(adamw, lr=3e-3, weight_decay=0.0))
        stop = StopAtOverflows(max_overflows=6 if case == "broken" else 12)
        trainer = Trainer(
            accelerator="cpu",
            devices=int(os.environ["WORLD_SIZE"]),
            strategy=ZeROOnCPU(stage=stage, process_group_backend="gloo", initial_scale_power=scale, hysteresis=1),
            precision="16-mixed",
            callbacks=[stop, *([Breaks()] if case == "broken" else [])],
            default_root_dir=out,
            gradient_clip_val=1.0,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        found = ""
        try:
            trainer.fit(module, Schedule(blueprint))
        except TrainingError as error:
            found = str(error)
        report = {"skipped": stop.skipped, "steps": trainer.global_step, "error": found}
        report |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        report["finite"] = all(bool(p.isfinite().all()) for p in module.parameters())
        (out / f"{case}{stage}-{trainer.global_rank}.json").write_text(json.dumps(report))


class Breaks(Callback):
    """The gradient of one layer overflows at any scale, in the second process alone."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        if trainer.global_rank == trainer.world_size - 1:
            weight = module.model.llm.get_parameter("model.model.layers.1.mlp.down_proj.weight")
            weight.register_hook(lambda gradient: gradient * torch.inf)


def end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    kind, tokenizer_folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if kind.startswith("half"):
        train_in_half(out, tiny_sizes(tokenizer_folder), int(kind[4:]))
    else:
        main(kind, tokenizer_folder, out)
