"""The one place that turns configs into objects; behind it no class knows of Hydra."""

import logging
import os
import re
import signal
import time
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing import parent_process
from threading import Thread
from typing import Any, TypeVar

import torch
from hydra.utils import get_object, instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import DictConfig, OmegaConf

from macaw_lit.arguments import check
from macaw_lit.data.datamodule import MacawDataModule
from macaw_lit.errors import ConfigError, did_you_mean, nearest
from macaw_lit.llms.hf import check_sizes
from macaw_lit.settings import GROUPS, check_run
from macaw_lit.training.module import MacawModule
from macaw_lit.training.strategies import check_machine
from macaw_lit.types import Sample

Built = TypeVar("Built")

_STARTER = "MACAW_LIT_STARTER"  # in the environment of ranks that Lightning starts: the process of the first one
_PACKAGES = {"Wandb": "wandb", "MLflow": "mlflow", "TensorBoardLogger": "tensorboard"}
"""Of loggers, which say that they lack them only when data have been read."""
_GRACE = 20  # seconds, to save in


def check_settings(cfg: DictConfig) -> None:
    """Refuse what can be told to be wrong before anything is built.

    Raises:
        ConfigError: a setting that is not known, of another type, or out of its range.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    check_run(settings)
    for name in (*GROUPS, "callbacks", "logger"):
        check(settings.get(name), name)
    check_sizes(settings["model"]["llm"].get("config"))
    for name, logger in (settings.get("logger") or {}).items():
        package = _PACKAGES.get(str(logger.get("_target_")).rpartition(".")[2]) if isinstance(logger, dict) else None
        if package and find_spec(package) is None:
            raise ConfigError(f"logger.{name} needs the package {package}: pip install 'macaw-lit[loggers]'")
    strategy, known = settings["trainer"].get("strategy"), ("auto", *StrategyRegistry.available_strategies())
    if isinstance(strategy, str) and strategy not in known:
        raise ConfigError(f"trainer.strategy={strategy}: no such strategy{did_you_mean(strategy, known)}")
    devices = settings["trainer"]["devices"]
    written = "".join(f"{each}," for each in devices) if isinstance(devices, list) else str(devices)
    if not re.fullmatch(r"auto|-1|0*[1-9]\d*|\d+(,\d+)+|(\d+,)+", written):
        raise ConfigError(f"trainer.devices={devices}: expected how many, such as 1, -1 for all, or a list")


def check_metric(cfg: DictConfig, searching: bool) -> None:
    """Refuse an `optimized_metric`, or a callback's `monitor`, that no part of the run measures.

    Args:
        searching: whether a search goes by it, for which held-out rows are needed.

    Raises:
        ConfigError: nothing measures it.
    """
    name, logged = str(cfg.optimized_metric), ["train/loss", "val/loss"]
    given = dict(cfg.get("callbacks") or {})
    callbacks = {at: each for at, each in given.items() if isinstance(each, DictConfig)}  # the builder refuses others
    for callback in callbacks.values():
        with suppress(ImportError, AttributeError, ValueError):  # no such target: the builder says so
            if prefix := getattr(get_object(callback["_target_"]), "figures", None):
                logged.append(f"{prefix}…")
    for at, callback in callbacks.items():
        if (monitor := callback.get("monitor")) is not None:
            _check_measured(f"callbacks.{at}.monitor", str(monitor), logged)
    proof = [f"modality_use/{each}" for each in ("accuracy", "passed", "gating_types")] if cfg.get("evaluation") else []
    _check_measured("optimized_metric", name, [*logged, "steps", "seconds", *proof])
    if name == "val/loss" and searching and not (cfg.data.get("heldout") and cfg.trainer.limit_val_batches):
        wanted = "add rows to data.heldout, let trainer.limit_val_batches be above 0, or choose another figure"
        raise ConfigError(f"optimized_metric=val/loss: nothing is held out to measure it by; {wanted}")


def _check_measured(key: str, name: str, known: list[str]) -> None:
    if not any(name == each or (each[-1] == "…" and name.startswith(each[:-1])) for each in known):
        like = nearest(name, known)
        hint = f"did you mean {like}? " if like else ""
        raise ConfigError(f"{key}={name}: nothing measures it; {hint}there will be {', '.join(known)}")


def set_up(cfg: DictConfig) -> None:
    """Seed every generator of this process and its workers, bound its threads, let Lightning speak of faults only."""
    job = parent_process()  # of joblib; it may have been orphaned while it still imported
    starter = job.pid if job is not None and job.pid is not None else os.getppid()
    rank = os.environ.get(_STARTER) == str(starter) or "TORCHELASTIC_RUN_ID" in os.environ
    if not rank and _STARTER in os.environ and int(os.environ.get("LOCAL_RANK", 0)):  # of Lightning's, orphaned by now
        rank, starter = True, int(os.environ[_STARTER])
    if rank or job is not None:  # a shell may end before its run
        Thread(target=_end_with_starter, args=(starter,), daemon=True).start()
    os.environ[_STARTER] = str(os.getpid())
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    seed_everything(cfg.seed, workers=True, verbose=False)


def _end_with_starter(starter: int) -> None:
    """End this process after the one that started it, which may be killed without a word to its others.

    A job of a sweep saves first, as on SIGTERM. A rank would wait for the dead one in a collective operation, for as
    long as that has patience: 30 minutes with NCCL.
    """
    while os.getppid() == starter:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)


def build_module(cfg: DictConfig) -> MacawModule:
    """The LightningModule of `cfg.model`, `cfg.optim` and its own settings; its model is built when it starts."""
    sizes: Any = OmegaConf.to_container(cfg.model, resolve=True)
    pretrained, adapt = sizes.pop("pretrained"), sizes.pop("adapt")
    return MacawModule(
        sizes,
        _built(cfg.optim, "optim", partial),
        cfg.warmup_ratio,
        pretrained,
        adapt,
        cfg.loss_mean,
        list(cfg.checkpointing),
        list(cfg.compiled),
    )


def build_data(cfg: DictConfig) -> MacawDataModule:
    """The LightningDataModule of `cfg.data`."""
    return _built(cfg.data, "data", MacawDataModule)


def attach(datamodule: MacawDataModule, module: MacawModule) -> None:
    """Fit the data to the module's tokenizer and preprocessing, once it is known that its model can be built.

    Raises:
        ConfigError: the model cannot be built or trained as told, or not with these data.
    """
    blueprint = module.blueprint()  # sizes and preprocessing are known without allocating a weight
    if datamodule.pack_rows:
        blueprint.llm.check_packing()
    datamodule.attach(blueprint.llm.tokenizer, blueprint.specs())


def heldout_samples(datamodule: MacawDataModule) -> list[Sample]:
    """The held-out rows of all sources, which need no model."""
    datamodule.setup("test")
    return [sample for samples in datamodule.samples["heldout"].values() for sample in samples]


def build_trainer(cfg: DictConfig) -> Trainer:
    """The Trainer of `cfg.trainer` with the callbacks and loggers of their groups.

    Raises:
        ConfigError: this machine cannot run it.
    """
    _check_launcher(cfg.trainer)
    check_machine(cfg.trainer, torch.accelerator.device_count(), torch.cuda.is_available())
    callbacks = [_built(node, f"callbacks.{name}", Callback) for name, node in (cfg.get("callbacks") or {}).items()]
    loggers = [_built(node, f"logger.{name}", Logger) for name, node in (cfg.get("logger") or {}).items()]
    return _built(cfg.trainer, "trainer", Trainer, callbacks=callbacks, logger=loggers)


def _built(node: Any, key: str, kind: type[Built], **arguments: Any) -> Built:
    """What a config's `_target_` makes; a `partial` where it is to be called later.

    Raises:
        ConfigError: it makes something else, or there is none.
    """
    # Without `all`, a built object within a mapping comes back wrapped in a DictConfig if it is a dataclass.
    made = instantiate(node, _convert_="all", **arguments) if isinstance(node, DictConfig) else node
    if not isinstance(made, kind):
        word = "and _partial_: true" if kind is partial else f"that is a {kind.__name__}"
        raise ConfigError(f"{key} is {type(made).__name__}, expected a mapping with a _target_ {word}")
    return made


def _check_launcher(settings: DictConfig) -> None:
    """Refuse a number of processes other than that which torchrun has started."""
    devices, nodes, started = settings.devices, settings.num_nodes, os.environ.get("WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ or started is None or not isinstance(devices, int) or devices < 1:
        return
    if devices * nodes != int(started):
        raise ConfigError(
            f"torchrun has started {started} processes, and trainer.devices={devices} × trainer.num_nodes={nodes} are "
            f"{devices * nodes}: give its --nproc-per-node as trainer.devices and its --nnodes as trainer.num_nodes"
        )
