"""One line for a user's mistake, with the nearest thing that would have worked; None for anything else."""

import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from macaw_lit.errors import NO_ROOM, MacawError, did_you_mean, in_one_line
from macaw_lit.origin import not_text, origin


def explain(error: Exception, conf: Path, name: str, overrides: Sequence[str]) -> str | None:
    """Say what the user can do about `error`, or return None when it is not the user's to mend.

    Args:
        conf, name: the folder of the configs and the primary config.
        overrides: the command line as Hydra saw it.
    """
    for cause in _causes(error):
        # The second is Lightning's, which takes seconds to import.
        if isinstance(cause, MacawError) or type(cause).__name__ == "MisconfigurationException":
            return f"{cause}{_where(str(cause), overrides)}"
    if isinstance(error, MissingConfigException):
        return _wrong_option(error, conf)
    if isinstance(error, InstantiationException):
        return _wrong_argument(error)
    if isinstance(error, ConfigCompositionException):
        return _wrong_key(error, conf, name, overrides)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not `key=value` in Hydra's grammar; put quotes around values with special characters"
    taken = any(each.startswith("~") for each in overrides)
    if taken and isinstance(error, ConfigAttributeError | ConfigKeyError):
        return f"{error.full_key} is not there: leave it as it is, or give {error.full_key}=…"
    mistakes = (InterpolationKeyError, InterpolationResolutionError, MissingMandatoryValue, GrammarParseError)
    if isinstance(error, (*mistakes, ValidationError)):
        return f"{error.full_key}: {_first(error)}" if error.full_key else _first(error)
    if isinstance(error, yaml.YAMLError):
        return str(error)
    if isinstance(error, UnicodeDecodeError) and (path := not_text(_folders(conf, overrides))):
        return f"{path}: {in_one_line(error)}: save it as UTF-8 text"
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        groups = [each for each in overrides if each[:1] != "=" and (conf / each.partition("=")[0]).is_dir()]
        wrong = [each for each in groups if re.fullmatch(r"null|true|false|[\d.]*|\{.*", each.partition("=")[2])]
        ways = " or ".join(f"~{each.partition('=')[0]}" for each in wrong)
        return (
            f"{', '.join(wrong)}: a group takes a name of its options; leave it out with {ways}"
            if wrong
            else str(error)
        )
    if isinstance(error, OSError) and (
        error.errno in NO_ROOM or any(map(_makes_folder, traceback.extract_tb(error.__traceback__)))
    ):
        place = error.filename or "the run folder"
        return f"{place}: cannot be written ({error.strerror}); make room there, or choose another paths.run_dir"
    return _first(error) if isinstance(error, HydraException) else None


def _where(message: str, overrides: Sequence[str]) -> str:
    """The YAML file that gave the setting with which a message begins, if one did and the config is composed."""
    key = re.match(r"([\w.]+)(?=[:=]| is )", message)
    if not key or not HydraConfig.initialized():
        return ""
    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    found = origin(key[1], folders, runtime.choices, overrides)
    return f" ({found})" if found else ""


def _folders(conf: Path, overrides: Sequence[str]) -> list[Path]:
    """The folder of the configs and the user's own, if `--config-dir` gives one."""
    arguments = get_args_parser().parse_args(list(overrides))
    return [conf, *([Path(arguments.config_dir)] if arguments.config_dir else [])]


def _makes_folder(frame: traceback.FrameSummary) -> bool:
    """Whether a line of a traceback is where Hydra or we make the folder of a run, and what is first in it."""
    return frame.name in ("run_job", "_save_config", "one_run") and any(
        word in (frame.line or "") for word in ("mkdir", "open(")
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error re-raised along the way may be its own cause's cause
        seen.add(id(error))
        yield error
        error = error.__cause__


def _first(error: Exception) -> str:
    """Return the message without the details that OmegaConf appends on further lines."""
    return re.split(r"\n\s*(?:full_key|object_type|reference_type)", str(error))[0]


def _wrong_option(error: MissingConfigException, conf: Path) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or (path.stem for path in (conf / group).glob("*.yaml")))  # none for lists of names
    if not group:
        return _first(error)
    known = f" ({group}: {', '.join(options)})" if options else ""
    more = "; pip install 'macaw-lit[sweeps]' adds joblib and submitit_slurm" if group == "hydra/launcher" else ""
    return f"{group}={option}: no such option{did_you_mean(option, options)}{known}{more}"


def _wrong_key(error: Exception, conf: Path, name: str, overrides: Sequence[str]) -> str:
    found = re.search(r"Could not (?:override|delete)(?: from config\.)? '([^']+)'", str(error))
    if not found:
        return _first(error) + (f" ({in_one_line(error.__cause__)})" if isinstance(error.__cause__, Exception) else "")
    key, cause = found[1], error.__cause__
    if isinstance(cause, ConfigKeyError) and str(cause.full_key).startswith(f"{key}."):  # of a mapping that is given
        return f"{cause.full_key}: {key} has no such key; +{cause.full_key}=… adds it"
    others = [each for each in overrides if each.partition("=")[0].lstrip("+~") != key]
    known = [each for each in _known_keys(conf, name, others) if each != key]  # it may be there but for an override
    return f"{key}: no such key{did_you_mean(key, known)}"


def _known_keys(conf: Path, name: str, overrides: Sequence[str]) -> list[str]:
    """List the dotted keys and the groups of the config, chosen by the overrides as far as these are sound."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        for chosen in (overrides, [each for each in overrides if each.startswith("experiment=")], []):
            with suppress(HydraException, OmegaConfBaseException):
                cfg = compose(name, overrides=list(chosen), return_hydra_config=True)
                return [*_dotted(cfg), *(str(group) for group in cfg.hydra.runtime.choices)]
    return []


def _dotted(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, child in node.items_ex(resolve=False):
        yield f"{prefix}{key!s}"
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield from _dotted(child, f"{prefix}{key!s}.")


def _wrong_argument(error: InstantiationException) -> str | None:
    """Explain a target that does not exist or that refuses its arguments; other failures are bugs."""
    text = str(error)
    located = re.search(r"Error (locating|in call to) target '([^']+)'", text)
    if not located and error.__cause__ is None:  # no target at all, or none that Hydra lets a config name
        what, _, key = text.partition("full_key: ")
        return f"{key or 'a _target_'}: {' '.join(what.split())}"
    if not located:
        return None
    target = located[2]
    if located[1] == "locating":
        place, _, name = target.rpartition(".")
        like = did_you_mean(name, [each for each in dir(sys.modules.get(place)) if each[0] != "_"], f"{place}.")
        return f"{target}: no such class or function{like or '; check the `_target_` in the config'}"
    if unexpected := re.search(r"unexpected keyword argument '([^']+)'", text):
        known = [name for name in inspect.signature(get_object(target)).parameters if name != "self"]
        return f"{unexpected[1]}: {target} takes no such argument{did_you_mean(unexpected[1], known)}"
    if missing := re.search(r"missing .*required .*argument[^']*('[^\n]+')", text):
        return f"{missing[1]}: {target} needs it; add it to the config"
    if isinstance(error.__cause__, ValueError | ImportError):  # a wrong value, or a package that is not installed
        return f"{target} cannot be built ({in_one_line(error.__cause__)})"
    return None
