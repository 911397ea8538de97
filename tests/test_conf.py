"""Every config composes, and every `_target_` in it exists and takes the keys that stand beside it."""

import inspect
import runpy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from macaw_lit.cli import conf_dir

COMMANDS = sorted(path.stem for path in conf_dir().glob("*.yaml"))
OPTIONS = sorted(
    str(path.relative_to(conf_dir()).with_suffix(""))
    for path in conf_dir().glob("*/**/*.yaml")
    if path.relative_to(conf_dir()).parts[0] not in ("hydra", "local")
)


def composed(command: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(command, overrides=list(overrides), return_hydra_config=True)


def choosing(option: str) -> str:
    """The override that puts `group/name` in the place where train.yaml has that group."""
    group, _, name = option.rpartition("/")
    places = [key for key in composed("train").hydra.runtime.choices if key.partition("@")[0] == group]
    return f"{places[0]}={name}" if places else f"+{option.replace('/' + name, '')}={name}"


def targets(node, where=""):
    """Every node with a `_target_`, with its place in the config."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield where, node
        for key in node:
            yield from targets(node._get_node(key), f"{where}.{key}")
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from targets(node._get_node(index), f"{where}[{index}]")


def check(cfg: DictConfig) -> None:
    for where, node in targets(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])):
        signature = inspect.signature(get_object(node._target_))
        given = {key: None for key in node if not str(key).startswith("_")}
        partial = node.get("_partial_", False) or where.startswith(".model.")  # the model passes its parts their sizes
        try:
            (signature.bind_partial if partial else signature.bind)(**given)
        except TypeError as error:
            pytest.fail(f"{where}: {node._target_}: {error}")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose_and_bind(command):
    check(composed(command))


@pytest.mark.parametrize("option", OPTIONS)
def test_options_compose_and_bind(option):
    check(composed("train", choosing(option)))


def test_a_misspelt_key_would_be_caught():
    cfg = composed("train", "+data.preprocessor.max_lenght=1")
    with pytest.raises(pytest.fail.Exception, match="max_lenght"):
        check(cfg)


def test_files_of_groups_are_lowercase_yaml():
    files = [path for path in conf_dir().rglob("*") if path.is_file()]
    assert all(path.suffix == ".yaml" and path.name == path.name.lower() for path in files)


def test_the_paper_s_run_has_the_paper_s_values():
    cfg = composed("train", "experiment=macaw_7b")
    trainer, data = cfg.trainer, cfg.data
    assert (trainer.devices, data.batch_size, trainer.accumulate_grad_batches, trainer.max_epochs) == (8, 4, 3, 5)
    assert (cfg.optim.lr, cfg.warmup_ratio, data.preprocessor.max_length, trainer.precision) == (
        3e-5,
        0.03,
        512,
        "16-mixed",
    )
    assert [source.count for source in data.train.values()] == [50_000] * 3
    assert (trainer.strategy._target_, trainer.strategy.stage) == ("macaw_lit.training.strategies.ZeRO", 3)


def test_the_sampler_deals_to_ranks_itself():
    for option in sorted(path.stem for path in (conf_dir() / "trainer").glob("*.yaml")):
        assert composed("train", f"trainer={option}").trainer.use_distributed_sampler is False


def test_loggers_touch_no_network():
    cfg = composed("train", "logger=wandb").logger
    assert cfg.wandb.offline is True
    mlflow = composed("train", "logger=mlflow").logger.mlflow
    assert OmegaConf.to_container(mlflow, resolve=False)["tracking_uri"] == "sqlite:///${paths.log_dir}/mlflow.db"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "many"])
def test_the_loss_curve_has_its_file_beside_any_logger(name):
    assert "csv" in composed("train", f"logger={name}").logger


def test_an_own_config_folder_is_found(tmp_path: Path):
    """What a user without a working copy does: `--config-dir my_conf experiment=mine`."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 11\n")
    assert composed("train", f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine").seed == 11


def test_the_words_of_the_benchmark_of_trainers_compose(monkeypatch):
    monkeypatch.syspath_prepend(conf_dir().parent / "benchmarks")
    words = runpy.run_path(str(conf_dir().parent / "benchmarks" / "training.py"))["BASE"]
    for trainer in ("gpu", "deepspeed_zero3_fp16"):
        settings = composed("plan", *words, f"trainer={trainer}").trainer
        assert (settings.devices, settings.enable_progress_bar) == (1, False)
