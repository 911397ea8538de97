"""What the settings of a run may be, told before anything heavy is imported: groups, types and ranges."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from macaw_lit.arguments import check, check_value
from macaw_lit.errors import ConfigError, did_you_mean

_NAMES: Mapping[str, Sequence[str]] = {
    "paths": ("root_dir", "data_dir", "log_dir", "run_dir"),
    "evaluation": ("types", "n", "batch_size", "max_new_tokens"),
    "model": ("encoders", "modalities", "pretrained", "aligner", "llm", "adapt"),
}
_MODALITY = ("encoder", "frames", "aligner")
"""What stands in groups without a `_target_`."""

GROUPS = ("model", "data", "optim", "trainer")
"""Groups that every run needs."""

_WHOLE = ("experiment", "local", "debug", "hparams_search")
"""Groups whose files change the others, and leave nothing under their own names."""

Range = tuple[Any, int | float, int | float]

_RANGES: Mapping[str, Range] = {
    "seed": (int, 0, 2**32 - 1),
    "warmup_ratio": (float, 0, 1),  # of the steps
    "loss_mean": (Literal["tokens", "microbatches"], 0, 0),
    "checkpointing": (Sequence[str], 0, 0),
    "compiled": (Sequence[str], 0, 0),
    "threads": (int | None, 1, math.inf),
    "optimized_metric": (str, 0, 0),
    "ckpt_path": (str | None, 0, 0),
    "tags": (Sequence[str], 0, 0),
    "model.encoders": (Mapping[str, Mapping[str, Any]], 0, 0),
    "model.modalities": (Mapping[str, Mapping[str, Any]], 0, 0),
    "model.aligner": (Mapping[str, Any], 0, 0),
    "model.llm": (Mapping[str, Any], 0, 0),
    "model.pretrained": (Mapping[str, str | None], 0, 0),
    "model.adapt": (Mapping[str, str | Mapping[str, Mapping[str, Any] | None]], 0, 0),
    "data.batch_size": (int, 1, 10**6),
    "data.num_workers": (int, 0, 1000),
    "data.preprocessor.max_length": (int, 1, 10**8),
    "trainer.accumulate_grad_batches": (int, 1, math.inf),
    "trainer.check_val_every_n_epoch": (int | None, 1, math.inf),
    "trainer.devices": (int | str | Sequence[int], -1, math.inf),
    "trainer.gradient_clip_val": (float | None, 0, math.inf),
    "trainer.log_every_n_steps": (int | None, 0, math.inf),
    "trainer.max_epochs": (int | None, -1, math.inf),
    "trainer.max_steps": (int, -1, math.inf),
    "trainer.num_nodes": (int, 1, math.inf),
    "trainer.val_check_interval": (Any, 1e-6, math.inf),
}
"""Key → type, and of numbers the least and the most."""


def check_run(settings: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Refuse a run's settings that no class of ours would refuse, or only after minutes.

    Args:
        more: keys of a command that knows more than a run.

    Raises:
        ConfigError: a group is not there, a key is not known, or a value is of another type or out of its range.
    """
    single = [key for key in _RANGES if "." not in key]
    _check_names(settings, (*single, *GROUPS, *_NAMES, "callbacks", "logger", *more))
    for group in GROUPS:
        if not isinstance(settings.get(group), Mapping):
            raise ConfigError(f"{group} is {settings.get(group)}: a run needs it; choose an option of {group}=…")
    for group, names in _NAMES.items():
        _check_names(settings.get(group), names, f"{group}.")
    for key, allowed in _RANGES.items():
        check_range(settings, key, allowed)
    for kind, modality in settings["model"]["modalities"].items():
        _check_names(modality, _MODALITY, f"model.modalities.{kind}.")
        if isinstance(own := modality.get("aligner"), Mapping):
            shared = settings["model"]["aligner"].get("_target_")
            check({**own, "_target_": shared}, f"model.modalities.{kind}.aligner")


def _check_names(node: Any, known: Sequence[str], at: str = "") -> None:
    for name in node if isinstance(node, Mapping) else ():
        if name in _WHOLE and not at:
            remedy = "its file must begin with the line `# @package _global_`, as those beside it do"
            raise ConfigError(f"{name}: its settings are not those of a run; {remedy}")
        if name not in known:
            raise ConfigError(f"{at}{name}: no such key{did_you_mean(name, known, at)}")


def check_range(settings: Mapping[str, Any], key: str, allowed: Range) -> None:
    """Refuse a value of another type than `allowed` says, or a number that is less or more.

    Raises:
        ConfigError: it is, or the key is not there.
    """
    wanted, least, most = allowed
    value: Any = settings
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ConfigError(f"{key} is not there: a run needs it; leave it as it is, or give {key}=…")
        value = value[name]
    check_value(value, wanted, key)
    if isinstance(value, int | float) and not least <= value <= most:
        bounds = f"at least {least}" if most == math.inf else f"a number from {least} to {most}"
        raise ConfigError(f"{key}={value}: expected {bounds}")
