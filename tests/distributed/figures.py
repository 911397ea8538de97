"""What callbacks log of a training by some strategies: `figures.py TOKENIZER_FOLDER OUT STRATEGY …`."""

import os
import sys
import threading
from pathlib import Path

import torch
from lightning import Trainer
from rank import Schedule, end_with_parent, sgd, strategy

from conftest import tiny_sizes
from macaw_lit.model import Macaw
from macaw_lit.training.callbacks import AlignmentHealth
from macaw_lit.training.gradient_norms import GradientNorms
from macaw_lit.training.metrics import MetricsFile
from macaw_lit.training.modality_loss import ModalityLoss
from macaw_lit.training.module import MacawModule
from macaw_lit.training.throughput import Throughput


def main(tokenizer_folder: Path, out: Path, kinds: list[str]) -> None:
    sizes = tiny_sizes(tokenizer_folder)
    blueprint = Macaw.from_config(sizes)
    for kind in kinds:
        torch.manual_seed(0)
        trainer = Trainer(
            accelerator="cpu",
            devices=int(os.environ.get("WORLD_SIZE", "1")),
            strategy=strategy(kind),
            callbacks=[GradientNorms(), ModalityLoss(), Throughput(peak_tflops=1), AlignmentHealth(every_n_steps=1)],
            logger=MetricsFile(str(out / kind)),
            default_root_dir=out / kind,
            gradient_clip_val=0.5,
            max_steps=4,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(MacawModule(sizes, sgd), Schedule(blueprint))


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
