"""One of two processes of which the second alone meets missing pictures: `skips.py TOKENIZER_FOLDER OUT`."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rank import end_with_parent, sgd, strategy

from conftest import tiny_sizes
from macaw_lit.data.datamodule import MacawDataModule, Source
from macaw_lit.data.mix import MixtureSampler
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import DataError
from macaw_lit.model import Macaw
from macaw_lit.training.callbacks import Ledger
from macaw_lit.training.module import MacawModule
from macaw_lit.types import MediaRef, Sample, Turn

ROWS = 60
BAD = MixtureSampler([ROWS], [None]).order(0)[5:25:2].tolist()  # of the second process, from its third row on


def read() -> Iterator[Sample]:
    for row in range(ROWS):
        media = (MediaRef("image", f"gone{row}.jpg"),) if row in BAD else ()
        yield Sample((Turn("user", f"{row}?", media), Turn("assistant", "Yes.")), f"made/{row}", "made")


def fit(out: Path, name: str, sizes: dict[str, Any], rate: float, resume: Path | None = None) -> list[Any]:
    """Steps that were taken, and the line that training ended with."""
    saves = ModelCheckpoint(out / name, "{step}", every_n_train_steps=3, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy("ddp"),
        callbacks=[Ledger(rate), saves],
        max_epochs=1,
        default_root_dir=out / name,
        use_distributed_sampler=False,
        **quiet,
    )
    blueprint = Macaw.from_config(sizes)
    data = MacawDataModule({"mine": Source(read)}, None, partial(Preprocessor, max_length=256), batch_size=2)
    data.attach(blueprint.llm.tokenizer, blueprint.specs())
    line = ""
    try:
        trainer.fit(MacawModule(sizes, sgd), data, ckpt_path=resume)
    except DataError as error:
        line = str(error)
    return [trainer.global_step, line]


def main(tokenizer_folder: Path, out: Path) -> None:
    sizes = tiny_sizes(tokenizer_folder)
    ends = {
        "strict": fit(out, "strict", sizes, 0),
        "usual": fit(out, "usual", sizes, 0.1),
        "whole": fit(out, "whole", sizes, 1),
        "resumed": fit(out, "resumed", sizes, 1, out / "whole" / "step=3.ckpt"),
    }
    (out / f"ends{os.environ['RANK']}.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
