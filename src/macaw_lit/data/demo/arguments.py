"""`key=value` arguments of the demo's own commands, which need no configuration files."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from macaw_lit.errors import ConfigError, MacawError


def read_arguments(arguments: list[str], defaults: Mapping[str, int | Path]) -> dict[str, int | Path]:
    """The defaults with what was given in their place; a default's type says what is expected.

    Raises:
        ConfigError: an unknown key, or no whole number where one is expected.
    """
    values = dict(defaults)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in values:
            raise ConfigError(f"{argument!r}: expected key=value with one of the keys {', '.join(values)}")
        if isinstance(defaults[name], int) and not value.isdecimal():
            raise ConfigError(f"{argument!r}: expected a whole number, such as {name}={defaults[name]}")
        values[name] = type(defaults[name])(value)
    return values


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line; a user's mistake is one line on stderr and exit code 1."""
    try:
        main(sys.argv[1:])
    except MacawError as error:
        sys.exit(f"error: {error}")
