"""What is done to the repeated blocks of a part for the backward pass: computed again instead of kept, or compiled."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """The layers of a part's stacks: members of its lists of modules, but not of lists within these."""
    found: list[nn.Module] = []
    for child in part.children():
        found += [*child] if isinstance(child, nn.ModuleList) else blocks_of(child)
    return found


def recompute(model: Macaw, parts: Iterable[str]) -> None:
    """Keep only the inputs of the parts' blocks for the backward pass, and compute the rest again there.

    Activation checkpointing (Chen et al., 2016) without re-entry, so that it works whatever of a block is trained, in
    eval mode as well: frozen blocks between trained parts hold activations too. Names of weights stay as they are.

    Raises:
        ConfigError: there is no such part, or it has no blocks.
    """
    for block in _blocks(model, parts, "checkpointing"):
        _replace(block, _recomputed)


def compile_blocks(model: Macaw, parts: Iterable[str]) -> None:
    """Compile the forward pass of the parts' blocks, which share one compiled function where they are alike.

    Only where gradients are wanted: generation has shapes of its own at every step. To be called before `recompute`,
    which then computes the compiled block again.

    Raises:
        ConfigError: there is no such part, or it has no blocks.
    """
    for block in _blocks(model, parts, "compiled"):
        _replace(block, lambda plain: torch.compile(plain, dynamic=True))


def restore(model: nn.Module) -> None:
    """Give every block its own forward pass back."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "of_block", False):
            del module.forward


def _recomputed(plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(plain, *args, use_reentrant=False, **kwargs)


def _replace(block: nn.Module, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    plain = block.forward
    changed = change(plain)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (changed if torch.is_grad_enabled() else plain)(*args, **kwargs)

    forward.of_block = True  # type: ignore[attr-defined]
    block.forward = forward


def _blocks(model: Macaw, parts: Iterable[str], setting: str) -> list[nn.Module]:
    known = {name: blocks_of(part) for name, part in model.parts().items()}
    for part in parts:
        if not known.get(part):
            able = [name for name, blocks in known.items() if blocks]
            raise ConfigError(f"{setting}=[{part}]: expected parts of the model that have blocks, of {able}")
    return [block for part in dict.fromkeys(parts) for block in known[part]]
