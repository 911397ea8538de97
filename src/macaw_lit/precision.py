"""Rotary frequencies stay exact when a module is cast to 16 bit; its other constants are cast as its weights are."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

_FREQUENCIES = ("inv_freq", "inv_timescales")


class ExactConstants(nn.Module):
    """A module whose rotary frequencies keep their precision when it is cast; they are known by their names.

    `module.half()` and `module.to(torch.bfloat16)` of torch round them too. An angle is a position times a frequency:
    with the 8 bits of bfloat16 it is off by a radian after some hundred positions. Models compute angles in fp32
    whatever they are given, but add or multiply other constants (tables of positions, scales), which must have the
    type of the weights.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExactConstants":
        kept = [*_constants(self, frequencies=True)]
        super()._apply(fn, recurse)
        for module, name, exact in kept:
            made = module.get_buffer(name)
            if made.dtype != exact.dtype and not exact.is_meta:
                module._buffers[name] = exact.to(made.device)
        return self


def cast_constants(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Cast, in place, the constants that `ExactConstants` does not keep; None leaves them as they are.

    For strategies that cast parameters themselves, and leave buffers that no state dict holds in fp32.
    """
    for child, name, buffer in [*_constants(module, frequencies=False)]:
        child._buffers[name] = buffer.to(dtype)


def _constants(module: nn.Module, frequencies: bool) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Floating buffers that no state dict holds, rotary frequencies or all others: whose, by what name, and which."""
    for child in module.modules():
        for name, buffer in child.named_buffers(recurse=False, remove_duplicate=False):
            constant = name in child._non_persistent_buffers_set and buffer.is_floating_point()
            if constant and name.endswith(_FREQUENCIES) is frequencies:
                yield child, name, buffer
