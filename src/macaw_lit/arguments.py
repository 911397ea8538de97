"""Arguments of a config's `_target_`s held against their signatures before anything is built, partial ones too."""

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

from macaw_lit.errors import ConfigError, did_you_mean


def check(node: Any, key: str) -> None:
    """Refuse names that a `_target_` does not take, and values of another type than it states, nested ones too.

    A `_target_` that does not exist is left to what builds it, and so are types that are no plain values.

    Args:
        node: a config as plain values, or a part of one.
        key: where it stands, as typed on a command line; empty at the top.

    Raises:
        ConfigError: the first of them, with its key, and the nearest name or the type that is expected.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, key)
        for name, value in node.items():
            check(value, f"{key}.{name}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            check(value, f"{key}.{place}")


def check_value(value: Any, wanted: Any, key: str) -> None:
    """Refuse a plain value that is of another type.

    Raises:
        ConfigError: it is, or what a mapping holds; with its key, and the type that is expected.
    """
    if _fits(value, wanted):
        return
    kinds = [kind for kind in (wanted, *get_args(wanted)) if get_origin(kind) in (Mapping, dict)]
    for name, each in value.items() if kinds and isinstance(value, Mapping) else ():
        check_value(each, get_args(kinds[0])[1], f"{key}.{name}")
    raise ConfigError(f"{key}={_shown(value)}: expected {' or '.join(dict.fromkeys(_words(wanted)))}")


def _check_call(node: Mapping[str, Any], key: str) -> None:
    target = str(node["_target_"])
    try:
        called = get_object(target)
        parameters = dict(inspect.signature(called).parameters)
    except (ImportError, AttributeError, ValueError):  # the builder says so
        return
    kinds, at = _types(called), f"{key}." * bool(key)
    free = _open(parameters)
    for base in called.__mro__[1:-1] if free and _own(called) else ():  # what ours do not know, they pass on
        if "__init__" in vars(base):
            more = inspect.signature(base).parameters
            parameters, free = {**more, **parameters}, _open(more)
            break
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and not free:
            raise ConfigError(f"{at}{name}: {target} takes no such argument{did_you_mean(name, parameters, at)}")
        wanted = kinds.get(name, Any)
        if value is None and name in parameters and parameters[name].default is None:
            continue  # whatever the type says
        check_value(value, wanted, f"{at}{name}")


def _open(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _types(called: Any) -> dict[str, Any]:
    """The types of arguments; none where they cannot be read, as of other libraries' that import them only to check."""
    try:
        return get_type_hints(inspect.getattr_static(called, "__init__") if isinstance(called, type) else called)
    except (NameError, TypeError):
        return {}


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a plain value is of a type; what is yet to be built, or no plain type, may be."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, inner = get_origin(wanted) or wanted, get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin in (int, float, bool, str, types.NoneType):
        allowed = (int, float) if origin is float else origin
        return isinstance(value, allowed) and (isinstance(value, bool) is (origin is bool)) and value == value  # no nan
    if origin is Path:
        return isinstance(value, str | Path)
    if origin in (Mapping, dict):
        return isinstance(value, Mapping) and all(_fits(each, (*inner, Any, Any)[1]) for each in value.values())
    if _fixed(wanted):
        fits = isinstance(value, list | tuple) and len(value) == len(inner)
        return fits and all(map(_fits, value, inner))
    if origin in (Sequence, Iterable, list, tuple):
        kind = inner[0] if inner else Any
        return isinstance(value, list | tuple) and all(_fits(each, kind) for each in value)
    return origin is not Callable and not _own(origin)


def _own(kind: Any) -> bool:
    """Whether a class is of this package: an object of it comes by a `_target_` alone."""
    return isinstance(kind, type) and kind.__module__.startswith("macaw_lit.")


def _fixed(wanted: Any) -> bool:
    """Whether each place of a tuple has a type of its own, and not all have one as in tuple[int, ...]."""
    return get_origin(wanted) is tuple and Ellipsis not in get_args(wanted)


def _words(wanted: Any) -> Iterator[str]:
    origin, inner = get_origin(wanted) or wanted, get_args(wanted)
    if origin in (Union, types.UnionType):
        for each in inner:
            yield from _words(each)
    elif origin is Literal:
        yield from map(str, inner)
    elif origin in (Mapping, dict):
        each = " or ".join(_words((*inner, Any, Any)[1]))
        yield "a mapping" if each == "Any" else f"a mapping, each {each}"
    elif _fixed(wanted):
        yield f"a list of {', '.join(' or '.join(_words(each)) for each in inner)}"
    elif origin in (Sequence, Iterable, list, tuple):
        yield f"a list, each {' or '.join(_words(inner[0]))}" if inner else "a list"
    elif origin is Callable or _own(origin):
        yield "a mapping with _target_" + (" and _partial_: true" if origin is Callable else f", a {origin.__name__}")
    else:
        plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}
        yield plain.get(origin, getattr(origin, "__name__", str(origin)))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
