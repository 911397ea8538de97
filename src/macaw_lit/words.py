"""The words of a command line before Hydra reads them: free text is taken literally, flags are checked."""

import re
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from macaw_lit.errors import ConfigError


def literal(arg: str, text: Sequence[str], paths: Sequence[str] = ()) -> str:
    """Quote the value of `key=value` for Hydra's grammar when `key` is a text or path key, so that it arrives as typed.

    A path that Hydra reads as a list (`[a.jpg,b.jpg]`) stays a list. Commas, brackets, quotes, `${…}` and the like
    lose their meaning, so free text is never a sweep. Only `???` alone keeps its meaning: not given.

    Args:
        arg: one word of the command line.
        text, paths: the keys. A dotted one such as `model.path` is typed by its first part, `model=…`, which Hydra
            alone would take for a choice in the group `model`; spelt out it follows Hydra's grammar.
    """
    key, equals, value = arg.partition("=")
    target = {name.partition(".")[0]: name for name in (*text, *paths)}.get(key)
    if not equals or target is None:
        return arg
    if target in paths and _is_list(arg):
        return f"{target}={value}"
    # OmegaConf halves the backslashes before `${` and takes an odd one as "no interpolation".
    value = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return f"{target}={QuotedString(value, Quote.single).with_quotes()}"


def placed(arg: str) -> list[str]:
    """Let `paths.run_dir=folder` alone say where Hydra puts a run, or the numbered runs of a sweep."""
    key, _, value = arg.partition("=")
    if key != "paths.run_dir":
        return [arg]
    return [f"{key}=${{hydra:runtime.output_dir}}", f"hydra.run.dir={value}", f"hydra.sweep.dir={value}"]


def _is_list(arg: str) -> bool:
    try:
        return isinstance(OverridesParser.create().parse_override(arg).value(), list)
    except HydraException:
        return False


def is_override(arg: str) -> bool:
    """Whether a word is a setting, and no flag."""
    return not arg.startswith("-") and ("=" in arg or arg.startswith("~"))


def check_flags(args: Sequence[str]) -> None:
    """Answer a flag that Hydra does not know in one line; it would print all that it knows.

    Raises:
        ConfigError: there is one.
    """

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; settings are given without dashes, such as seed=1, and --help tells of flags")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(args)
