"""Linear layers whose weights are kept in four bits, as QLoRA has them, and are made anew whenever they are needed."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from macaw_lit.deferred import materialised
from macaw_lit.errors import ConfigError

BLOCK, GROUP = 64, 256  # values that share a scale, and scales that share one of theirs
_CODES = 256  # levels of a scale


class NF4Linear(nn.Module):
    """A linear layer at rest in NF4 with double quantisation (Dettmers et al., 2023, section 3): 4.127 bits a value.

    y = x Wᵀ + b, where W has the type of x, or autocast's. It is made of the bytes for each product, forward and
    backward, and kept by none. Only x gets a gradient.

    Everything is kept as bytes in buffers: no strategy shards, casts or trains them, and checkpoints hold them.

    Args:
        plain: the layer, torch's own, Whisper's or GPT-2's `Conv1D`; its weight is taken from it.

    Attributes:
        codes: uint8, two values in each.
        scales: uint8, one for each `BLOCK` values, in the order of the weight's storage.
        statistics: uint8 [4 · (1 + 256 + …)], float32 as bytes: the scales' mean, their 256 levels, one factor for each
            `GROUP` of them.

    Raises:
        ConfigError: bitsandbytes is not installed, or the layer is of another class.
    """

    codes: Tensor
    scales: Tensor
    statistics: Tensor

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        kind = type(plain).__name__
        if kind not in ("Linear", "Conv1D"):
            raise ConfigError(f"lora.bits=4: a layer of class {kind} cannot be kept in 4 bits; set bits=null")
        weight, bias = (plain._parameters[name] for name in ("weight", "bias"))
        assert weight is not None
        self.shape, self.transposed = weight.shape, kind == "Conv1D"
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        plain._parameters.update(weight=None, bias=None)
        self._plain = (plain,)  # in a tuple, or it would count as a part of this module
        for name, buffer in zip(("codes", "scales", "statistics"), _quantised(weight), strict=True):
            self.register_buffer(name, buffer)

    @property
    def values(self) -> int:
        """How many the weight has."""
        return self.shape.numel()

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight as the layer had it, to within its quantisation."""
        library = _library()
        statistics = self.statistics.view(torch.float32)
        mean, levels, factors = statistics.split((1, _CODES, len(statistics) - 1 - _CODES))
        blocks = len(self.scales)
        state = library.QuantState(
            self.scales,
            shape=(blocks, BLOCK),  # on a CPU its kernel is wrong for rows that are not whole blocks
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=mean,
            state2=library.QuantState(factors, code=levels, blocksize=GROUP, dtype=torch.float32),
        )
        whole: Tensor = library.dequantize_4bit(self.codes, state)
        return whole.flatten()[: self.values].view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        product: Tensor = _Product.apply(x, self)
        return product

    def restored(self, dtype: torch.dtype) -> nn.Module:
        """The layer that this one was made of, with the weight that it has now; this one is to be dropped."""
        (plain,) = self._plain
        weight = self.dequantised(dtype).clone()  # without the rest of a last block, which safetensors would refuse
        plain.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        plain.register_parameter("bias", self.bias)
        return plain


def quantise(part: nn.Module, layers: list[nn.Module]) -> None:
    """Exchange these layers within `part`, one by one, for ones in four bits."""
    for parent in [*part.modules()]:
        for name, child in [*parent.named_children()]:
            if any(child is layer for layer in layers):
                setattr(parent, name, NF4Linear(child))


def restore_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Exchange all layers in four bits for plain ones."""
    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, NF4Linear):
                setattr(parent, name, child.restored(dtype))


def layers_in_4_bits(model: nn.Module) -> dict[str, NF4Linear]:
    """Those of a model, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, NF4Linear)}


def share(model: nn.Module, device: torch.device) -> None:
    """Give all processes the first one's bytes, on their device; every process must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for layer in layers_in_4_bits(model).values():
        for name, buffer in [*layer.named_buffers(recurse=False)]:
            layer._buffers[name] = moved = buffer.to(device)
            distributed.broadcast(moved, src=0)


class _Product(torch.autograd.Function):
    """x Wᵀ + b without keeping W for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, _rows(layer, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient @ _rows(ctx.layer, gradient.dtype), None


def _rows(layer: NF4Linear, dtype: torch.dtype) -> Tensor:
    """W, a row for each output."""
    weight = layer.dequantised(dtype)
    return weight.t() if layer.transposed else weight


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and statistics of a weight, or room for those of one on the meta device."""
    library = _library()
    blocks = -(-weight.numel() // BLOCK)
    if weight.is_meta:
        floats = 1 + _CODES + -(-blocks // GROUP)
        codes, scales, statistics = (
            torch.empty(size, dtype=torch.uint8) for size in ((blocks * BLOCK // 2, 1), blocks, 4 * floats)
        )
        return codes, scales, statistics
    flat = materialised(weight.detach()).flatten()
    padded = F.pad(flat, (0, blocks * BLOCK - len(flat))).view(blocks, BLOCK)
    codes, state = library.quantize_4bit(padded, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    statistics = torch.cat([state.offset.reshape(1), state.state2.code, state.state2.absmax]).float()
    return codes, state.absmax, statistics.view(torch.uint8)


def _library() -> Any:
    try:
        from bitsandbytes import functional  # takes seconds, and is an extra
    except ImportError as error:
        raise ConfigError("lora.bits=4 needs bitsandbytes: pip install 'macaw-lit[qlora]'") from error
    return functional
