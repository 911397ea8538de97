"""Tensors whose values come later: what fills them is remembered, and done one tensor at a time."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

Kind = TypeVar("Kind", bound=Tensor)
_CPU, _META = torch.device("cpu"), torch.device("meta")
_FORGOTTEN = "writes into a tensor without memory in a way that is not remembered"
_ANSWERS = ("aten::_local_scalar_dense", "aten::equal")
_OVERWRITING = ("aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_")


@dataclass
class Recording:
    """How a storage gets its values, as one dimension: from a source, or none, and by what is then written into it."""

    source: Callable[[], Tensor] | None = None
    steps: list[Callable[[Tensor], None]] = field(default_factory=list)


def without_memory(kind: type[Kind], meta: Tensor) -> Kind:
    """A tensor of a subclass that says it is on the CPU, laid out as one on the meta device."""
    made: Kind = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
        kind,
        meta.shape,
        strides=meta.stride(),
        storage_offset=meta.storage_offset(),
        dtype=meta.dtype,
        device=_CPU,
    )
    return made


class Deferred(Tensor):
    """A tensor that says it is on the CPU and has no memory; `materialised` gives what it would hold.

    Operations on it are remembered, and done anew whenever it is materialised. What is drawn at random is also drawn at
    once, and dropped, so that all that is drawn afterwards is what it would have been. What reads it and writes into a
    tensor with memory is done at once.

    Attributes:
        meta: the same on the meta device.
        recording: how its storage is filled, shared by all views of it.
    """

    meta: Tensor
    recording: Recording

    @staticmethod
    def __new__(cls, meta: Tensor, recording: Recording) -> "Deferred":
        made = without_memory(cls, meta)
        made.meta, made.recording = meta, recording
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        schema, drawn = func._schema, torch.Tag.nondeterministic_seeded in func.tags
        written = _written(schema, args, kwargs)
        if any(isinstance(each, Deferred) for each in written):
            if len(written) > 1 or not args or written[0] is not args[0] or not _writes(schema.arguments[0]):
                raise RuntimeError(f"{func} {_FORGOTTEN}")
            _write(func, args, kwargs, drawn)
            return args[0]
        if written or drawn or schema.name in _ANSWERS:
            return func(*tree_map(materialised, args), **tree_map(materialised, kwargs))
        given: list[Deferred] = []
        made = func(*_on_meta(args, given), **_on_meta(kwargs, given))
        past = tree_map(_past, (args, kwargs))

        def again(number: int | None = None) -> Tensor:
            words, named = tree_map(_present, past)
            found = func(*words, **named)
            return found if number is None else found[number]

        if isinstance(made, Tensor):
            return _made(made, given, again)
        return type(made)(
            _made(each, given, lambda number=number: again(number))  # type: ignore[misc]
            for number, each in enumerate(made)
        )

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Tensor) -> None:
        """Nothing is to be done for what it already is, which `nn.Module.to` sets where it changes nothing."""
        same = isinstance(value, Deferred) and value.recording is self.recording
        if not same or any(
            of(value) != of(self) for of in (Tensor.size, Tensor.stride, Tensor.storage_offset, attrgetter("dtype"))
        ):
            raise RuntimeError(f"`.data = …` {_FORGOTTEN}")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Deferred":
        if id(self) not in memo:
            made = self.detach().clone().requires_grad_(self.requires_grad)
            others = {key: value for key, value in vars(self).items() if key not in vars(made)}
            made.__dict__.update(copy.deepcopy(others, memo))
            memo[id(self)] = made
        return memo[id(self)]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Deferred({[*self.shape]}, {self.dtype})"


def deferred(make: Callable[[], Tensor], like: Tensor) -> Deferred:
    """What `make` will give whenever it is called, in shape, strides and type of a tensor on the meta device."""

    def source() -> Tensor:
        made = make()
        if made.shape != like.shape or made.dtype != like.dtype:
            raise RuntimeError(f"{[*made.shape]} of {made.dtype} came where {[*like.shape]} of {like.dtype} was to be")
        if made.stride() != like.stride() or made.untyped_storage().nbytes() != like.untyped_storage().nbytes():
            made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(made)
        return made.as_strided((_length(like),), (1,), 0)

    return Deferred(like, Recording(source))


def materialised(tensor: Any) -> Any:
    """What a `Deferred` would hold, which may be its source itself and is not to be changed; anything else as it is."""
    return _present(_past(tensor))


@contextmanager
def deferring() -> Iterator[None]:
    """Parameters in main memory that modules get within become `Deferred`s."""
    plain, twins = nn.Module.register_parameter, WeakTensorKeyDictionary()

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        plain(module, name, param)
        if param is None or isinstance(param, Deferred) or param.device != _CPU:
            return
        if param not in twins:
            data = param.detach()
            twin = nn.Parameter(deferred(lambda: data, data.to(_META)), param.requires_grad)
            twin.__dict__.update({key: kept for key, kept in vars(param).items() if key not in vars(twin)})
            twins[param] = twin
        module._parameters[name] = twins[param]

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]


def _written(schema: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """What an operation writes into."""
    given = [*zip(schema.arguments, args, strict=False)]  # the last may have their defaults
    given += [(each, kwargs[each.name]) for each in schema.arguments[len(args) :] if each.name in kwargs]
    written = tree_leaves([value for argument, value in given if _writes(argument)])
    return [value for value in written if isinstance(value, Tensor)]


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _write(func: Any, args: Any, kwargs: Any, drawn: bool) -> None:
    """Remember an operation in place."""
    target, meta = args[0], args[0].meta
    func(meta, *_on_meta(args[1:], []), **_on_meta(kwargs, []))
    if meta.shape != target.shape or meta.stride() != target.stride():
        raise RuntimeError(f"{func} gives another shape to a tensor without memory")
    if drawn and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func} draws from a generator of its own for a tensor without memory")
    past = tree_map(_past, (args[1:], kwargs))
    state = torch.get_rng_state() if drawn else None
    size, stride, offset = meta.shape, meta.stride(), meta.storage_offset()

    def step(flat: Tensor) -> None:
        words, named = tree_map(_present, past)
        with torch.random.fork_rng(devices=[], enabled=drawn):
            if state is not None:
                torch.set_rng_state(state)
            func(flat.as_strided(size, stride, offset), *words, **named)

    if drawn:
        func(torch.empty_strided(size, stride, dtype=meta.dtype), *args[1:], **kwargs)
    if meta.numel() == _length(meta) and func._schema.name in _OVERWRITING:
        target.recording.source = None
        target.recording.steps.clear()
    target.recording.steps.append(step)


def _made(made: Tensor, given: list[Deferred], make: Callable[[], Tensor]) -> Deferred:
    """A result that is a view of what was given, or new."""
    storage = made.untyped_storage()._cdata
    views = (each.recording for each in given if each.meta.untyped_storage()._cdata == storage)
    recording = next(views, None)
    return deferred(make, made) if recording is None else Deferred(made, recording)


def _on_meta(given: Any, found: list[Deferred]) -> Any:
    def one(each: Any) -> Any:
        if isinstance(each, Deferred):
            found.append(each)
            return each.meta
        if isinstance(each, Tensor):
            return each.to(_META) if each.ndim else each
        return _META if each == _CPU and isinstance(each, torch.device) else each

    return tree_map(one, given)


@dataclass(frozen=True)
class _Past:
    """What a tensor was when an operation read it."""

    meta: Tensor
    recording: Recording


def _past(given: Any) -> Any:
    if not isinstance(given, Deferred):
        return given
    assert (given.dtype, given.shape) == (given.meta.dtype, given.meta.shape), "exchanged by way of `.data`"
    return _Past(given.meta, Recording(given.recording.source, [*given.recording.steps]))


@torch.no_grad()
def _present(given: Any) -> Any:
    if not isinstance(given, _Past):
        return given
    meta, recording = given.meta, given.recording
    if recording.source is None:
        flat = torch.empty(_length(meta), dtype=meta.dtype)
    else:
        flat = recording.source().clone() if recording.steps else recording.source()
    for step in recording.steps:
        step(flat)
    return flat.as_strided(meta.shape, meta.stride(), meta.storage_offset())


def _length(meta: Tensor) -> int:
    return meta.untyped_storage().nbytes() // meta.itemsize
