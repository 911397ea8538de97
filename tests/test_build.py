"""From configs to objects: what is built is plain, seeded and as configured."""

import logging
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from macaw_lit import build
from macaw_lit.build import attach, build_data, build_module, build_trainer, heldout_samples, set_up
from macaw_lit.cli import conf_dir
from macaw_lit.data.datamodule import MacawDataModule, Source
from macaw_lit.errors import ConfigError
from macaw_lit.training.callbacks import Ledger
from macaw_lit.training.metrics import MetricsFile
from macaw_lit.training.module import MacawModule

SUBJECTS = ("model", "optim", "data", "trainer", "callbacks", "logger")


@pytest.fixture
def cfg(tmp_path: Path) -> Callable[..., DictConfig]:
    """The config of training with these overrides, its folders in tmp_path."""

    def make(*words: str) -> DictConfig:
        folders = [f"paths.{name}={tmp_path}" for name in ("root_dir", "run_dir")]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("train", overrides=["experiment=demo", *folders, *words])

    return make


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads, levels and variables of this process are as before when the test ends."""
    threads, loggers = torch.get_num_threads(), [logging.getLogger(f"lightning{name}") for name in ("", ".pytorch")]
    levels = [logger.level for logger in loggers]
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    yield
    torch.set_num_threads(threads)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("restored")
def test_every_generator_is_seeded_and_threads_are_bounded(cfg):
    drawn = []
    for seed in (5, 5, 6):
        set_up(cfg(f"seed={seed}", "threads=2"))
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    assert all(first != second for first, second in zip(drawn[0], drawn[2], strict=True))
    assert torch.get_num_threads() == 2
    assert os.environ["PL_SEED_WORKERS"] == "1"
    set_up(cfg("threads=null"))
    assert torch.get_num_threads() == 2, "null leaves them"


def plain(value: Any) -> bool:
    """Whether no config is left anywhere in a value."""
    if OmegaConf.is_config(value):
        return False
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(map(plain, children))


def test_a_module_knows_sizes_and_weights_and_no_configs(cfg):
    module = build_module(
        cfg("warmup_ratio=0.5", "model.pretrained.llm=null", "checkpointing=[llm]", "compiled=[vision]")
    )
    assert (module.checkpointing, module.compiled) == (["llm"], ["vision"])
    assert plain(module.config)
    assert module.config["modalities"].keys() == {"image", "video", "audio"}
    assert "pretrained" not in module.config, "it is no size, and says where files lay on one machine"
    assert module.pretrained.keys() == {"vision", "hearing", "llm"}
    assert module.pretrained["llm"] is None
    assert module.warmup_ratio == 0.5
    assert plain(module.build_optimizer.keywords)
    assert module.build_optimizer.keywords["part_lr"] == {"hearing": 6e-4}
    module.build_optimizer.keywords["part_lr"] = None  # for a model without parts
    optimizer = module.build_optimizer(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_sources_are_sources_and_settings_arrive(cfg):
    data = build_data(
        cfg(
            "seed=7",
            "data.batch_size=3",
            "data.train.image.count=11",
            "data.preprocessor.max_length=99",
            "data.pack_rows=true",
        )
    )
    sources = data.sources
    assert all(isinstance(source, Source) for split in sources.values() for source in split.values())
    assert sources["train"]["image"].count == 11
    assert (data.seed, data.batch_size, data.pack_rows) == (7, 3, True)
    assert data.make_preprocessor.keywords["max_length"] == 99
    assert data.make_preprocessor.keywords["seed"] == 7
    assert plain(data.make_preprocessor.keywords)


def test_a_trainer_has_its_callbacks_and_loggers(cfg, tmp_path):
    trainer = build_trainer(cfg("callbacks=ledger"))
    assert sum(isinstance(callback, Ledger) for callback in trainer.callbacks) == 1
    assert [type(logger) for logger in trainer.loggers] == [MetricsFile]
    assert trainer.default_root_dir == str(tmp_path)
    without = cfg("logger=none", "callbacks=none")
    assert build_trainer(without).loggers == []
    with open_dict(without):
        del without["logger"], without["callbacks"]  # as with ~logger on the command line
    assert build_trainer(without).loggers == []


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def test_rows_are_packed_only_for_a_language_model_that_keeps_samples_apart(sizes):
    data = MacawDataModule({"none": Source(lambda: iter(()))}, pack_rows=True)
    attach(data, MacawModule(sizes, sgd))
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}
    module = MacawModule({**sizes, "llm": {**sizes["llm"], "config": bloom}}, sgd)
    with pytest.raises(ConfigError, match=r"of type bloom is not known .*: set data\.pack_rows=false, or take one of"):
        attach(data, module)
    data.pack_rows = False
    attach(data, module)


@pytest.mark.slow
def test_data_fit_the_module_before_it_is_built(cfg, tiny_run):
    config = cfg(f"paths.data_dir={tiny_run.root / 'data'}", "data.num_workers=0", "data.batch_size=2")
    module, data = build_module(config), build_data(config)
    attach(data, module)
    assert module._model is None
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module.configure_model()
    assert module.model.embed(batch).shape[:2] == batch.input_ids.shape
    assert batch.media.keys() == module.model.specs().keys()


@pytest.mark.slow
def test_heldout_rows_need_no_model(cfg, tiny_run):
    samples = heldout_samples(build_data(cfg(f"paths.data_dir={tiny_run.root / 'data'}")))
    assert {sample.source for sample in samples} == {"macaw_image", "macaw_video", "macaw_audio", "alpaca"}
    assert all("type" in sample.meta for sample in samples)
    for sample in samples:
        assert not any("train" in Path(ref.path).parts for turn in sample.turns for ref in turn.media)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("name", "value", "watched"),
    [
        ("MACAW_LIT_STARTER", str(os.getppid()), True),
        ("MACAW_LIT_STARTER", "0", False),  # of an earlier run, or none
        ("TORCHELASTIC_RUN_ID", "mine", True),
        ("LOCAL_RANK", "0", False),  # by hand: the shell may end before the run
    ],
)
def test_a_rank_watches_what_started_it_and_a_run_does_not(cfg, monkeypatch, name, value, watched):
    monkeypatch.setenv("MACAW_LIT_STARTER", "0")
    monkeypatch.setenv(name, value)
    started: list[Any] = []
    thread = lambda **settings: SimpleNamespace(start=lambda: started.append(settings["args"]))  # noqa: E731
    monkeypatch.setattr(build, "Thread", thread)
    set_up(cfg())
    assert started == [(os.getppid(),)] * watched
    assert os.environ["MACAW_LIT_STARTER"] == str(os.getpid()), "for those that it starts"


@pytest.mark.usefixtures("restored")
def test_a_rank_of_lightning_s_that_was_orphaned_before_it_could_watch_knows_its_starter(cfg, monkeypatch):
    for name, value in {"MACAW_LIT_STARTER": "4194304", "LOCAL_RANK": "1"}.items():  # more than any process has
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    started: list[Any] = []
    thread = lambda **settings: SimpleNamespace(start=lambda: started.append(settings["args"]))  # noqa: E731
    monkeypatch.setattr(build, "Thread", thread)
    set_up(cfg())
    assert started == [(4194304,)]


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_process_ends_after_the_one_that_started_it(monkeypatch, stubborn):
    """Of two forked ones the second would sleep for ever, and holds a pipe as long as it lives."""
    monkeypatch.setattr(build, "_GRACE", 0)
    alive, held = os.pipe()
    if not (starter := os.fork()):
        own = os.getpid()  # the other one may first be scheduled when this one is gone
        if not os.fork():
            signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else signal.SIG_DFL)
            build._end_with_starter(own)
        time.sleep(0.5)
        os._exit(0)
    os.close(held)
    os.waitpid(starter, 0)
    assert select.select([alive], [], [], 30)[0], "it lives on"
    assert os.read(alive, 1) == b""
    os.close(alive)


ORPHANED = """
import os, signal, sys, time
from types import SimpleNamespace
from joblib import Parallel, delayed

def job(number, starter):
    if number == 0:
        os.kill(starter, signal.SIGKILL)
    while os.getppid() == starter:
        time.sleep(0.05)
    from macaw_lit.build import set_up
    print("imported", flush=True)
    set_up(SimpleNamespace(threads=1, seed=0))
    time.sleep(150)

Parallel(n_jobs=2)(delayed(job)(number, os.getpid()) for number in range(2))
"""


@pytest.mark.slow
def test_a_job_of_joblib_whose_starter_died_while_it_imported_ends_too(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(ORPHANED)
    # Jobs hold the pipe as long as they live; the limit is above the seconds of their imports, and below their own.
    ended = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout.count("imported")) == (-signal.SIGKILL, 2)
