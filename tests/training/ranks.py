"""Trains four steps on one process or two: `ranks.py TOKENIZER_FOLDER OUT PROCESSES`, called by test_module."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from conftest import tiny_batch, tiny_sizes
from macaw_lit.model import Macaw
from macaw_lit.training.module import MacawModule
from macaw_lit.types import Batch

ROWS = [
    [(1, {"image": 1}), (2, {"video": 1, "audio": 1})],  # what the first process sees
    [(3, {}), (4, {}), (5, {}), (6, {})],  # and the second
]


class Ranks(LightningDataModule):
    """The rows of this process, or of both when there is one."""

    def __init__(self, model: Macaw) -> None:
        super().__init__()
        self.blueprint = model

    def train_dataloader(self) -> DataLoader[Batch]:
        rows = ROWS[self.trainer.global_rank] if self.trainer.world_size == 2 else [row for own in ROWS for row in own]
        return DataLoader([tiny_batch(self.blueprint, rows)] * 4, batch_size=None)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Steps in proportion to the gradient: AdamW's first steps follow signs, which rounding can flip near zero."""
    return torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.05)


def main(tokenizer_folder: Path, out: Path, processes: int) -> None:
    """Writes the weights before and after."""
    sizes = tiny_sizes(tokenizer_folder)
    torch.manual_seed(0)
    module = MacawModule(sizes, sgd)
    module.configure_model()
    save_file(module.model.state_dict(), out / "start.safetensors")
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=DDPStrategy(process_group_backend="gloo") if processes > 1 else "auto",
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, Ranks(module.model))
    if trainer.is_global_zero:
        save_file(module.model.state_dict(), out / f"{processes}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
