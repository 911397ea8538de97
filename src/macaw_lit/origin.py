"""Finds which YAML file, and which line of it, gave a setting; the command line has no file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Choices = Mapping[str, Any]


def origin(key: str, folders: Sequence[Path], choices: Choices, overrides: Sequence[str]) -> str | None:
    """Return `file, line 3` of the YAML that sets a key, or None if the command line or no file does.

    Files that a user writes to change others, `local` and `experiment`, come first. Options of a list, as of
    `callbacks=[default,best]`, are not among Hydra's choices and so are not searched.

    Args:
        key: dotted.
        folders: where configs are looked for, in Hydra's order.
        choices: group, or `group@package`, → option.
        overrides: words of the command line.
    """
    given = [each.partition("=")[0].lstrip("+~") for each in overrides]
    if any(key == each or key.startswith(f"{each}.") for each in given if each not in choices):
        return None
    for choice, option in choices.items():
        group, _, package = choice.partition("@")
        path = next((file for folder in folders if (file := folder / group / f"{option}.yaml").is_file()), None)
        line = None if path is None else _line(path, key, (package or group).replace("/", "."))
        if line is not None:
            return f"{path}, line {line}"
    return None


def _line(path: Path, key: str, package: str) -> int | None:
    text = path.read_text(encoding="utf-8")
    told = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    prefix = {"_global_": "", "_group_": package}.get(told[1], told[1]) if told else package
    below = key.removeprefix(f"{prefix}.") if prefix else key
    if prefix and below == key:
        return None
    return next((line for name, line in _keys(yaml.compose(text)) if name == below), None)


def _keys(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield f"{prefix}{key.value}", key.start_mark.line + 1
        yield from _keys(value, f"{prefix}{key.value}.")


def not_text(folders: Sequence[Path]) -> Path | None:
    """Return the first YAML file that is not UTF-8, if there is one."""
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return path
    return None
