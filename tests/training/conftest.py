"""Data modules of real pictures and texts, a Trainer that says nothing, and what it logs."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from macaw_lit.data.datamodule import MacawDataModule, Source
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.model import Macaw
from macaw_lit.types import MediaRef, Sample, Turn


def read(paths: list[Path]) -> Iterator[Sample]:
    """A question to each picture; `Path()` asks without one. Answers are one to three words long."""
    for number, path in enumerate(paths):
        media = (MediaRef("image", path),) if path.name else ()
        turns = (Turn("user", f"Shade {number}?", media), Turn("assistant", "very " * (number % 3) + "dark"))
        yield Sample(turns, f"shades/{number}", "shades")


@pytest.fixture
def make_data(model: Macaw) -> Callable[..., MacawDataModule]:
    def make(paths: list[Path], **settings: Any) -> MacawDataModule:
        preprocessor = partial(Preprocessor, max_length=256)
        data = MacawDataModule(
            {"shades": Source(partial(read, paths))}, None, preprocessor, **{"batch_size": 2} | settings
        )
        data.attach(model.llm.tokenizer, model.specs())
        return data

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(*callbacks: Any, folder: Path = tmp_path, **settings: Any) -> Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            callbacks=list(callbacks),
            use_distributed_sampler=False,
            enable_checkpointing=any("Checkpoint" in type(callback).__name__ for callback in callbacks),
            **quiet | settings,
        )

    return make


class Logged(DummyLogger):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = defaultdict(dict)

    def log_metrics(self, metrics, step=None) -> None:
        self.steps[step] |= {name: value for name, value in metrics.items() if name != "epoch"}

    def under(self, prefix: str) -> dict[int, dict[str, float]]:
        """Step → what was logged there under names that begin with `prefix`."""
        found = {step: {k: v for k, v in logged.items() if k.startswith(prefix)} for step, logged in self.steps.items()}
        return {step: logged for step, logged in found.items() if logged}


@pytest.fixture
def logged() -> Logged:
    return Logged()
