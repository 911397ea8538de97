"""Trains a model: `python -m macaw_lit.train experiment=demo`."""

import json
import math
import shutil
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from macaw_lit import record
from macaw_lit.cli import command, first_process, in_search, in_sweep, job_overrides, print_config, run_folder
from macaw_lit.errors import (
    NO_ROOM,
    ConfigError,
    DataError,
    MacawError,
    SampleError,
    TrainingError,
    in_one_line,
    system_error,
)
from macaw_lit.training import signals  # the module: launchers copy `main` to their jobs with the objects it names

if TYPE_CHECKING:
    from lightning import Trainer

    from macaw_lit.data.datamodule import MacawDataModule
    from macaw_lit.evaluation import Report
    from macaw_lit.inference import Answerer
    from macaw_lit.model import Macaw
    from macaw_lit.training.module import MacawModule

NOISE = (
    "Experiment logs directory .* exists and is not empty",
    "The dirpath has changed",
    ".*LeafSpec.* is deprecated",
    "Glyph .* missing",
    "Initializing zero-element tensors",  # of a size of 0, which is answered in one line
    "Total length of `.*` across ranks is zero",  # no held-out rows
    r"Found \d+ module.* in eval mode",
    r"torch\.distributed\.nn\.functional\.all_gather",  # Lightning's, at every step
)
"""Warnings of other libraries at what is as it should be."""


@command("train")
def main(cfg: DictConfig) -> float | None:
    """One run: train in one stage, save the model folder, measure if asked, and leave everything in the run folder.

    Returns:
        what `optimized_metric` names, in the first process, if it was measured.
    """
    if (cfg.trainer.devices, cfg.trainer.num_nodes) == (1, 1):  # several would wait for one that has been ended
        signals.stop_signals.heed()
    try:
        alone = first_process() and not in_sweep()  # a sweep sees to it itself
        with record.room_on_disk(run_folder()), record.one_run(run_folder()) if alone else nullcontext():
            return _train(cfg, run_folder())
    except signals.Stopped as stop:
        folder = run_folder()
        again = f"hydra.sweep.dir={folder.parent}" if in_sweep() else f"ckpt_path=auto paths.run_dir={folder}"
        _say(f"{stop}; go on with the same words and {again}")
        if stop.answer is not None:
            stop.answer()
        raise SystemExit(0) from None  # of a sweep too, whose next job must not begin
    finally:
        signals.stop_signals.leave()


def _train(cfg: DictConfig, folder: Path) -> float | None:
    # Heavy imports wait until the configuration is known to be sound.
    from macaw_lit.build import attach, build_data, build_module, build_trainer, check_metric, check_settings, set_up
    from macaw_lit.training.checkpoints import Checkpoints

    begun = time.monotonic()
    check_settings(cfg)
    checkpoints = Path((cfg.get("callbacks") or {}).get("checkpoint", {}).get("folder") or folder / "checkpoints")
    _check(cfg, checkpoints)
    check_metric(cfg, in_search())
    print_config(cfg, folder)
    ckpt_path = _start(cfg, checkpoints)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    set_up(cfg)
    module = build_module(cfg)
    datamodule = build_data(cfg)
    attach(datamodule, module)
    trainer = build_trainer(cfg)
    if not any(isinstance(callback, Checkpoints) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        signals.stop_signals.obey()  # nothing is to be saved
    datamodule.setup("fit")
    if trainer.is_global_zero:
        _print_reading(datamodule)
    report = None
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
    _fit(trainer, module, datamodule, ckpt_path)
    signals.stop_signals.heed()
    signals.stop_signals.obey()
    if trainer.is_global_zero and not cfg.trainer.fast_dev_run:
        report = _keep(cfg, folder, module.trained, datamodule)
    if not trainer.is_global_zero:
        return None
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]  # assigned by a connector
    if table := profiler.summary():  # Lightning tells it a log that is silent
        (folder / "profile.txt").write_text(table, encoding="utf-8")
        print(f"{table}\n{folder / 'profile.txt'}")
    print(folder)
    _settle(trainer)
    metrics = _metrics(trainer, report, folder) | {"seconds": round(time.monotonic() - begun, 1)}
    value = metrics.get(cfg.optimized_metric)
    if not cfg.trainer.fast_dev_run:
        words = job_overrides()
        record.write(folder, "done", words, optimized_metric=cfg.optimized_metric, value=value, metrics=metrics)
    return value


def _metrics(trainer: "Trainer", report: "Report | None", folder: Path) -> dict[str, float]:
    """The last losses that were logged, how far training came, and in short how the model uses its media."""
    # What was logged is all there is, if an earlier start had trained to the end.
    found = {name: values[-1][1] for name, values in _losses(folder).items()}
    found |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.count("/") == 1}
    found["steps"] = trainer.global_step
    if report is not None:
        gating = [result for result in report.types.values() if result.kind.gating]
        found["modality_use/gating_types"] = len(gating)
        found["modality_use/passed"] = sum(result.passed for result in gating)
        found["modality_use/accuracy"] = sum(result.accuracy for result in gating) / max(1, len(gating))
    return found


def _losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from macaw_lit.evaluation import read_losses

    path = folder / "metrics.csv"
    return read_losses(path) if path.is_file() else {}


def _keep(cfg: DictConfig, folder: Path, model: "Macaw", datamodule: "MacawDataModule") -> "Report | None":
    """Save the trained model, and show what training and evaluation say of it; the proof of modality use, if asked."""
    from macaw_lit.evaluation import plot_loss
    from macaw_lit.inference import Answerer
    from macaw_lit.training.adapt import merge

    merge(model)
    for left in folder.glob(".model.*"):  # of a start that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    model.save_pretrained(folder / "model", datamodule.preprocess)
    _print_skips(folder / "ledger.json")
    if any(math.isfinite(loss) for _, loss in _losses(folder).get("train/loss", [])):  # a run of few steps logs none
        plot_loss(folder / "metrics.csv", folder / "loss.png")
    if cfg.get("evaluation"):
        settings = dict(cfg.evaluation)
        answerer = Answerer(model.eval(), datamodule.preprocess, settings.pop("max_new_tokens"))
        return _measure(answerer, datamodule, folder, seed=cfg.seed, **settings)
    return None


def _check(cfg: DictConfig, folder: Path) -> None:
    """Refuse what would otherwise fail only when the model is built, or after training, or overwrite another run."""
    from macaw_lit.evaluation import read_types
    from macaw_lit.training.checkpoint_files import checkpoints, require_room

    require_room(folder)
    if cfg.ckpt_path is None and (found := checkpoints(folder)):
        remedy = "go on with ckpt_path=auto, or choose another paths.run_dir"
        raise ConfigError(
            f"{folder.parent} holds a run, whose checkpoint {found[0].name} would be overwritten: {remedy}"
        )
    if cfg.ckpt_path not in (None, "auto") and not (cfg.ckpt_path and Path(cfg.ckpt_path).exists()):
        wanted = "expected a checkpoint such as logs/train/runs/<time>/checkpoints/last.ckpt, or auto"
        raise ConfigError(f"ckpt_path={cfg.ckpt_path}: no such file; {wanted}")
    if cfg.get("evaluation"):
        read_types(Path(cfg.evaluation.types))
        for name in ("n", "batch_size", "max_new_tokens"):
            value = cfg.evaluation[name]
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"evaluation.{name}={value}; expected a whole number of at least 1")


def _start(cfg: DictConfig, folder: Path) -> str | None:
    """The checkpoint to go on from, if any.

    Raises:
        ConfigError: none that is there is whole; starting anew would overwrite what can perhaps be restored.
    """
    from macaw_lit.training.checkpoint_files import newest

    if cfg.ckpt_path != "auto":
        return None if cfg.ckpt_path is None else str(Path(str(cfg.ckpt_path)).resolve())
    path, damaged = newest(folder)
    if damaged and path is None:
        remedy = f"restore one, or start anew in another paths.run_dir, or remove {folder}"
        raise ConfigError(f"no checkpoint is whole: {'; '.join(damaged)}; {remedy}")
    for line in damaged:
        _say(line)
    _say(f"going on from {path}" if path else f"no checkpoint in {folder}: starting anew")
    return str(path) if path else None


def _say(line: str) -> None:
    """Print a line once, not in each process."""
    if first_process():
        print(line, flush=True)


def _fit(trainer: "Trainer", module: "MacawModule", datamodule: "MacawDataModule", ckpt_path: str | None) -> None:
    """Train; what fails before the first step is a setting or a checkpoint, for which Lightning has no class."""
    from lightning.pytorch.callbacks import LambdaCallback
    from torch.distributed import DistError
    from torch.distributed.checkpoint.api import CheckpointException

    started: list[bool] = []
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # assigned by a connector
    callbacks.append(LambdaCallback(on_train_start=lambda *_: started.append(True)))
    try:
        trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    except MacawError:
        raise
    except (Exception, CheckpointException) as error:  # the last, FSDP2's, is no Exception
        if isinstance(error, DistError) or "gloo/transport" in str(error):
            raise TrainingError(
                f"another process of this run has ended or does not answer ({in_one_line(error)}): its last line says "
                "why; go on with ckpt_path=auto"
            ) from error
        if "conditioned on metric" in str(error):  # of early stopping, which looks when the first epoch ends
            raise ConfigError(in_one_line(error)) from error
        if started or system_error(error) in NO_ROOM:
            raise
        why = in_one_line(error) if isinstance(error, ValueError) else type(error).__name__
        if ckpt_path:
            form = "a folder, as FSDP2 and ZeRO write it" if Path(ckpt_path).is_dir() else "a file, as others write it"
            wanted = "expected a whole checkpoint of a run with the same model, adapt, optimizer and strategy"
            raise ConfigError(f"ckpt_path={ckpt_path} cannot be continued ({why}): it is {form}; {wanted}") from error
        if isinstance(error, ValueError):
            raise ConfigError(f"training cannot start ({why}): mend that setting") from error
        raise


def _print_reading(datamodule: "MacawDataModule") -> None:
    """Show what became of the rows of each source, if any were rejected."""
    rejections = [tally.first for tally in datamodule.ledger if tally.first]
    if not rejections:
        return
    table = Table("split", "source", "usable", "rejected", "causes", title="rows read")
    for row in datamodule.table():
        table.add_row(*map(str, row))
    console = Console()
    console.print(table)
    for first in rejections:
        console.print(escape(f"first {first.cause}: {first.locator}: {first.detail}"))


def _settle(trainer: "Trainer") -> None:
    """Fail, now that all is saved, if the last epoch lost too many samples."""
    from macaw_lit.training.callbacks import Ledger

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # assigned by a connector
    for callback in callbacks:
        if isinstance(callback, Ledger) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            callback.settle()


def _print_skips(path: Path) -> None:
    """Show how many samples were skipped or cut while training, if any, by the ledger at `path`."""
    from macaw_lit.data.rows import in_words

    if not path.is_file():
        return
    ledger = json.loads(path.read_text(encoding="utf-8"))
    if ledger["skipped"] or ledger["truncated"]:
        causes = in_words(Counter(ledger["skipped"])) or "none"
        counts = f"{ledger['seen']} samples seen, {ledger['used']} used, {ledger['truncated']} used with a cut response"
        print(f"{counts}; skipped: {causes}")


def _measure(answerer: "Answerer", datamodule: "MacawDataModule", folder: Path, **settings: Any) -> "Report":
    """Prove which media are used; an unusable held-out medium must not look like a failed training."""
    from macaw_lit.build import heldout_samples
    from macaw_lit.evaluation.prove import prove

    try:
        return prove(answerer, heldout_samples(datamodule), folder, **settings)
    except SampleError as error:
        again = f"python -m macaw_lit.evaluate model={folder / 'model'}"
        raise DataError(f"the model is saved, but a held-out question is unusable: {error}; then {again}") from error


if __name__ == "__main__":
    main()
