"""What callbacks log, and what experts learn, by some strategies: `figures.py TOKENIZER_FOLDER OUT STRATEGY …`."""

import os
import sys
import threading
from pathlib import Path

import experts
import torch
from rank import Schedule, end_with_parent, sgd, trainer_for

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
        trainer = trainer_for(
            kind,
            out / kind,
            callbacks=[GradientNorms(), ModalityLoss(), Throughput(peak_tflops=1), AlignmentHealth(every_n_steps=1)],
            logger=MetricsFile(str(out / kind)),
            max_steps=4,
            log_every_n_steps=1,
            enable_checkpointing=False,
        )
        trainer.fit(MacawModule(sizes, sgd), Schedule(blueprint))


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    tokenizer_folder, out, *kinds = sys.argv[1:]
    main(Path(tokenizer_folder), Path(out), kinds)
    experts.main(Path(tokenizer_folder), Path(out) / "experts", [kind for kind in kinds if kind in experts.KINDS])
