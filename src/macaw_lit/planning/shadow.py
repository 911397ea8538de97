"""Tensors that say they are on the CPU and have no memory, and a ledger of the memory that they would take."""

import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from macaw_lit.deferred import without_memory

Module = TypeVar("Module", bound=nn.Module)
WEIGHTS, CAST, GRADIENTS = "weights", "weights cast by autocast", "gradients"
_CPU, _META = torch.device("cpu"), torch.device("meta")


class Ledger:
    """Bytes that live storages would take, by cause, as they come and go; and the operations counted on the way.

    What is made inside a kernel and gone when it returns is not seen.

    Attributes:
        cause: what new storages are put down to.
        live: cause → bytes now.
        flops: of matrix products, convolutions and attention, a multiplication with its addition being two.
    """

    def __init__(self) -> None:
        self.cause = "activations"
        self.live: Counter[str] = Counter()
        self.flops = 0
        self.peaks: dict[str, dict[str, int]] = {}
        self._watched: dict[str, tuple[tuple[str, ...], int]] = {}
        self._causes: dict[int, str] = {}
        self._known: dict[Any, tuple[Any, int]] = {}

    def run(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Call a kernel on meta tensors and count its operations; what it makes of such shapes it says but once.

        Blocks of a model are alike, and PyTorch's meta kernels are Python: asking each again is most of a trace.
        """
        key = func, _shapes(args), _shapes([*kwargs.items()])
        if key in self._known:
            recipe, flops = self._known[key]
            self.flops += flops
            return _make(recipe)
        made = func(*args, **kwargs)
        flops = _operations(func._overloadpacket, args, kwargs, made)
        self.flops += flops
        if _is_new(made, args):
            self._known[key] = _recipe(made), flops
        return made

    def watch(self, name: str, without: tuple[str, ...] = ()) -> None:
        """From now on `peaks[name]` is what lives by cause when the sum over all causes but `without` is greatest."""
        self._watched[name] = (without, -1)
        self._note()

    def unwatch(self, name: str) -> None:
        """Leave the peak `name` as it is."""
        del self._watched[name]

    def see(self, tensor: Tensor, cause: str) -> None:
        """Count the storage of a meta tensor, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._causes:
            self._causes[key] = cause
            self.live[cause] += storage.nbytes()
            weakref.finalize(storage, self._freed, key, storage.nbytes())
            self._note()

    def put_down(self, tensor: Tensor, cause: str) -> None:
        """Put the storage of a meta tensor down to another cause."""
        storage = tensor.untyped_storage()
        before = self._causes[storage._cdata]
        self._causes[storage._cdata] = cause
        self.live[before] -= storage.nbytes()
        self.live[cause] += storage.nbytes()
        self._note()

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether the storage of a meta tensor is put down to the weights."""
        return self._causes.get(tensor.untyped_storage()._cdata) == WEIGHTS

    def _freed(self, key: int, size: int) -> None:
        self.live[self._causes.pop(key)] -= size

    def _note(self) -> None:
        for name, (without, peak) in self._watched.items():
            total = sum(size for cause, size in self.live.items() if cause not in without)
            if total > peak:
                self._watched[name] = (without, total)
                self.peaks[name] = dict(self.live)


class Shadow(Tensor):
    """A tensor that autograd, autocast and attention take for one on the CPU, and whose kernels run on meta.

    Real tensors may stand beside it, so that what a model decides by the values of masks and labels is decided.
    Library classes for this (`FakeTensor`) gave the same bytes and took six times as long.
    """

    meta: Tensor
    ledger: Ledger

    @staticmethod
    def __new__(cls, meta: Tensor, ledger: Ledger, cause: str | None = None) -> "Shadow":
        shadow = without_memory(cls, meta)
        shadow.meta, shadow.ledger = meta, ledger
        ledger.see(meta, cause or ledger.cause)
        return shadow

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        shadows: dict[int, Shadow] = {}
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _positions(args[1]))
        given = _swap(args, shadows)
        named = {name: _swap(value, shadows) for name, value in (kwargs or {}).items()}
        ledger = next(iter(shadows.values())).ledger
        made = ledger.run(func, given, named)
        if isinstance(made, Tensor):
            if id(made) in shadows:
                return shadows[id(made)]  # an operation in place gives what it was given
            copied = func is torch.ops.aten._to_copy.default and ledger.is_weight(given[0])
            return cls(made, ledger, CAST if copied else None)
        if isinstance(made, list | tuple):
            return type(made)(cls(each, ledger) if isinstance(each, Tensor) else each for each in made)
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Shadow({[*self.shape]}, {self.dtype})"


def shadow(model: Module, ledger: Ledger, dtype: torch.dtype) -> Module:
    """Make shadows of the parameters and buffers of a model on meta, in place; floating ones in `dtype`.

    What is shared stays shared. They are put down to the weights, and what they get to the gradients.
    """
    known: dict[int, Tensor] = {}
    ledger.cause = WEIGHTS
    for module in model.modules():
        for named in (module._parameters, module._buffers):
            for name, tensor in named.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    known[id(tensor)] = _one(tensor, ledger, dtype)
                named[name] = known[id(tensor)]  # type: ignore[index,assignment]
    ledger.cause = "activations"
    return model


def _one(tensor: Tensor, ledger: Ledger, dtype: torch.dtype) -> Tensor:
    meta = tensor.meta if isinstance(tensor, Shadow) else tensor.detach()
    twin = Shadow(torch.empty_like(meta, dtype=dtype if meta.is_floating_point() else None, device=_META), ledger)
    if not isinstance(tensor, nn.Parameter):
        return twin
    parameter = nn.Parameter(twin, requires_grad=tensor.requires_grad)
    if tensor.requires_grad:
        parameter.register_post_accumulate_grad_hook(lambda given: ledger.put_down(given.grad.meta, GRADIENTS))  # type: ignore[union-attr]
    return parameter


def _operations(packet: Any, args: Any, kwargs: Any, made: Any) -> int:
    """As torch counts them; it does not count the CPU's attention, which is the one that shadows are given."""
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    count = flop_registry.get(packet)
    return 0 if count is None else count(*args, **kwargs, out_val=made)


def _shapes(value: Any) -> Any:
    """All that the shapes of a result depend on: of tensors their layout, of anything else its type and value."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(map(_shapes, value)) if isinstance(value, list | tuple) else (type(value), value)


def _recipe(made: Any) -> Any:
    if isinstance(made, Tensor):
        return made.shape, made.stride(), made.dtype
    return type(made), [_recipe(each) for each in made]


def _make(recipe: Any) -> Any:
    if len(recipe) == 3:
        shape, stride, dtype = recipe
        return torch.empty_strided(shape, stride, dtype=dtype, device=_META)
    return recipe[0](map(_make, recipe[1]))


def _is_new(made: Any, args: Any) -> bool:
    """Whether all is tensors with storages of their own, as large as they need: no view, and nothing in place."""
    if isinstance(made, list | tuple):
        return len({id(each) for each in made}) == len(made) and all(_is_new(each, args) for each in made)
    if not isinstance(made, Tensor) or not made.is_meta:
        return False
    own, others = made.untyped_storage(), [each.untyped_storage()._cdata for each in args if isinstance(each, Tensor)]
    return own._cdata not in others and own.nbytes() == _make(_recipe(made)).untyped_storage().nbytes()


def _swap(value: Any, shadows: dict[int, Shadow]) -> Any:
    """What a kernel on meta is called with; `shadows` keeps whose meta tensors these are."""
    if isinstance(value, Shadow):
        shadows[id(value.meta)] = value
        return value.meta
    if isinstance(value, Tensor):
        return value.to(_META) if value.ndim else value  # a scalar may stand on any device
    if isinstance(value, list | tuple):
        return type(value)(_swap(each, shadows) for each in value)
    return _META if value == _CPU and isinstance(value, torch.device) else value


def _positions(indices: Any) -> list[Any]:
    """Real masks as the positions that they choose: how many are chosen cannot be told on meta."""
    found: list[Any] = []
    for index in indices:
        mask = index is not None and index.dtype == torch.bool and not isinstance(index, Shadow)
        found += index.nonzero(as_tuple=True) if mask else [index]
    return found
