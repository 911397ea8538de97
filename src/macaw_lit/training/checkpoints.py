"""Exact resume: what a checkpoint holds beside Lightning's, when one is written, and how a run ends on a signal."""

import random
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from macaw_lit.errors import ConfigError, in_one_line
from macaw_lit.files import PART
from macaw_lit.training.checkpoint_files import prune, remove, settle
from macaw_lit.training.metrics import MetricsFile
from macaw_lit.training.signals import Stopped, stop_signals
from macaw_lit.training.strategies import from_all_processes

KEY = "macaw_lit"
TORCH_WRITER = ("PytorchStreamWriter", "inline_container")
PROGRESS = "epoch_loop.batch_progress"
GO_ON, SAVE, STOP = range(3)


class InPlace(TorchCheckpointIO):
    """Writes a checkpoint's file where it is told to, piece by piece.

    Lightning's own builds it in memory and writes it to the machine's folder for temporary files, which may be small.

    Raises:
        OSError: from `save_checkpoint`, if it cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with Path(path).open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's writer trips over the error of the file
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


class Checkpoints(Checkpoint):
    """Writes checkpoints from which a run goes on to the very bits that it would have had without the interruption.

    A checkpoint is taken when the first batch of an optimizer step begins: nothing is accumulated, validation and log
    of the step before are done. Its own part of it is the state of the random generators of every rank, how many rows
    `metrics.csv` has, and Lightning's count of logged steps, which it loses. They are put back when the first batch
    begins, so that nothing that happens in between matters. It is the last callback to run, so others' state is in it.

    On a signal to any rank that `signals.StopSignals` notes, all save and raise `Stopped` when the next step begins; a
    validation is finished first.

    Under ZeRO, where one process alone cannot write its part, the others end by the time limit of their exchange only.

    Args:
        folder: for `step<number>.ckpt`: a file, or a folder if the strategy shards, and for `last.ckpt`, a link.
        every_n_train_steps, every_n_minutes: when one is due; None never. When training ends there is one in any case.
        keep: how many of the newest are kept.

    Raises:
        ConfigError: an argument is not positive; or, while training, a checkpoint could not be written.
    """

    def __init__(
        self,
        folder: str,
        every_n_train_steps: int | None = None,
        every_n_minutes: int | float | None = 30,
        keep: int = 2,
    ) -> None:
        for name, value in (("every_n_train_steps", every_n_train_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise ConfigError(f"callbacks.checkpoint.{name}={value}; expected more than 0, or null for never")
        if keep < 1:
            raise ConfigError(f"callbacks.checkpoint.keep={keep}; expected at least 1")
        self.folder = Path(folder)
        self.every_n_train_steps = every_n_train_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self._loaded: dict[str, Any] | None = None
        self._saved_step = 0
        self._saved_at = 0.0
        self._heeding = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's answers to signals would talk to other processes amidst a step, and requeue jobs of SLURM.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = InPlace()

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(KEY)
        if state is None:  # not of this class
            return
        self._loaded = state
        self._saved_step = checkpoint["global_step"]
        trainer.should_stop = state["stopped"]
        rows = _rows_per_batch(trainer)
        if rows != state["rows_per_batch"]:  # another number of processes: the same place is another batch
            position = checkpoint[type(trainer.datamodule).__qualname__]["position"]
            current = checkpoint["loops"]["fit_loop"][PROGRESS]["current"]
            current.update(dict.fromkeys(current, position // rows))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        self._heeding = stop_signals.heed()
        if self._loaded is not None and Path(str(trainer.ckpt_path)).resolve().parent == self.folder.resolve():
            for logger in _metrics_files(trainer):
                logger.go_on(self._loaded["metrics_rows"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._heeding:
            stop_signals.leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # which Lightning does not call then

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._loaded is not None:
            _restore(trainer, self._loaded)
            self._loaded = None
            return
        if batch_idx % trainer.accumulate_grad_batches or trainer.fast_dev_run:
            return
        agreed = self._wish(trainer)
        if trainer.world_size > 1:  # alone there is nobody to ask, and no device to wait for
            wish = torch.tensor(agreed, device=pl_module.device)
            agreed = int(torch.as_tensor(trainer.strategy.reduce(wish, reduce_op="max")))
        if agreed != GO_ON and trainer.global_step > self._saved_step:
            self._save(trainer, between_steps=True)
        if agreed == STOP:
            name = stop_signals.asked.name if stop_signals.asked else "a signal to another process"
            raise Stopped(f"stopped by {name} after step {trainer.global_step}", stop_signals.answer())

    def on_train_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if trainer.global_step > self._saved_step and not trainer.fast_dev_run:
            self._save(trainer, between_steps=False)

    def _wish(self, trainer: Trainer) -> int:
        if stop_signals.asked is not None:
            return STOP
        steps = trainer.global_step - self._saved_step
        by_steps = self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0 and steps
        minutes = (time.monotonic() - self._saved_at) / 60
        return SAVE if by_steps or (self.every_n_minutes and minutes >= self.every_n_minutes) else GO_ON

    def _save(self, trainer: Trainer, between_steps: bool) -> None:
        """Write one checkpoint; all processes must call it. Training goes on as if none had been written."""
        own = _generators()
        path = self.folder / f"step{trainer.global_step:07d}.ckpt"
        part = path.with_name(path.name + PART)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        checkpoint[KEY] = _state(trainer, own)
        if between_steps:  # the batch that is about to begin has been counted already
            progress = checkpoint["loops"]["fit_loop"][PROGRESS]
            progress["is_last_batch"] = False
            for counts in ("total", "current"):
                progress[counts]["ready"] -= 1
        size = sum(tensor.nbytes for tensor in _tensors(checkpoint))
        with _told_to_all(part, size):
            if trainer.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove(part)
        with _told_to_all(part, size):
            trainer.strategy.save_checkpoint(checkpoint, part)
        with _told_to_all(part, size):
            if trainer.is_global_zero:
                settle(part, path)
                prune(self.folder, self.keep)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        _set_generators(own)  # what writes files draws from Python's


@contextmanager
def _told_to_all(path: Path, size: int) -> Iterator[None]:
    """What cannot be written in one process ends all of them, with the same line."""
    failure = None
    try:
        yield
    except (OSError, RuntimeError, CheckpointException) as error:  # the last is no Exception
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in TORCH_WRITER):
            raise
        cause: Any = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        failure = in_one_line(cause)
        free = shutil.disk_usage(path.parent if path.parent.is_dir() else Path.cwd()).free
        remove(path)
        failure = (
            f"checkpoint {path.with_suffix('')} cannot be written ({failure}): it takes at least {size:,} bytes, "
            f"{free:,} are free; make room and go on with ckpt_path=auto paths.run_dir={path.parents[1]}, "
            "earlier checkpoints are whole"
        )
    for told in from_all_processes(failure):
        if told:
            raise ConfigError(told)


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, Mapping | list | tuple):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _tensors(value)


def _metrics_files(trainer: Trainer) -> list[MetricsFile]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]


def _rows_per_batch(trainer: Any) -> int:
    """Rows of a batch over all processes; 0 for data of another class, which has no place to go on at."""
    return getattr(trainer.datamodule, "batch_size", 0) * trainer.world_size


def _state(trainer: Trainer, own: Mapping[str, Any]) -> dict[str, Any]:
    files = _metrics_files(trainer)
    for file in files:
        file.settle()
    return {
        "generators": from_all_processes(own),
        "metrics_rows": files[0].rows if files else 0,
        "logged_steps": trainer.fit_loop.epoch_loop._batches_that_stepped,
        "rows_per_batch": _rows_per_batch(trainer),
        "stopped": trainer.should_stop,
    }


def _generators() -> dict[str, Any]:
    """State of the random generators of this process, of types that are read without running code."""
    name, keys, *rest = tuple(np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore(trainer: Trainer, state: Mapping[str, Any]) -> None:
    trainer.fit_loop.epoch_loop._batches_that_stepped = state["logged_steps"]
    _set_generators(state["generators"][trainer.global_rank % len(state["generators"])])


def _set_generators(generators: Mapping[str, Any]) -> None:
    version, keys, gauss = generators["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(generators["numpy"]))
    torch.set_rng_state(generators["torch"].cpu())
    if generators["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"].cpu())
