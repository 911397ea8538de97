"""Constants that stay exact when a module is cast to 16 bit."""

from collections.abc import Callable

from torch import Tensor, nn


class ExactConstants(nn.Module):
    """A module whose constants, buffers that no state dict holds, keep their precision when it is cast.

    `module.half()` and `module.to(torch.bfloat16)` of torch round them too. An angle is a position times a frequency:
    with the 8 bits of bfloat16 it is off by a radian after some hundred positions.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExactConstants":
        weights = self.state_dict(keep_vars=True).keys()
        exact = {name: buffer for name, buffer in self.named_buffers() if name not in weights and not buffer.is_meta}
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if name in exact and buffer.dtype != exact[name].dtype:
                buffer.data = exact[name].to(buffer.device)
        return self
