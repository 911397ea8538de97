"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw

FULL_RATE_FAN_IN = 64  # convolutions of more inputs than this learn more slowly, in proportion


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: Sequence[float] = (0.9, 0.999),
    part_lr: Mapping[str, float] | None = None,
) -> Optimizer:
    """AdamW on all trainable parameters; only matrices of hidden layers are decayed.

    Args:
        part_lr: part of the model, as in `Macaw.parts` → its own peak learning rate.

    Raises:
        ConfigError: no parameter of the model is trainable, a rate is none, or `part_lr` names no part.
    """
    _check_numbers(weight_decay, betas, lr=lr)
    matrices, others = _split(model)
    rates = _part_rates(model, part_lr or {})
    groups = [
        {"name": f"{prefix}{kind}", "params": own, "lr": part_rate or lr, "weight_decay": decay}
        for kind, parameters, decay in (("decayed", [*matrices.values()], weight_decay), ("plain", others, 0.0))
        for prefix, part_rate, own in _by_part(parameters, rates)
    ]
    return AdamW(groups, betas=(betas[0], betas[1]))


class MuonAdamW(Optimizer):
    """Muon on the weight matrices of linear layers, AdamW on all else, as one optimizer with one step.

    Muon orthogonalises the momentum of a matrix before the step. It is scaled to AdamW's step size, so that both
    learning rates mean the same (Keller Jordan's Muon; scaling by Moonshot AI, arXiv 2502.16982). Convolutions stay
    with AdamW, whose step moves an output by up to lr · fan_in whatever the weights are: a kernel over 6 144 inputs
    would swing to and fro at a rate that suits a bias, so their rate falls with their fan-in.

    Args:
        lr, adamw_lr: peak learning rates of the two.
        part_lr: part of the model, as in `Macaw.parts` → its own `lr`; its `adamw_lr` is in proportion.

    Raises:
        ConfigError: no parameter of the model is trainable, a rate is none, or `part_lr` names no part.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        adamw_lr: float,
        weight_decay: float,
        betas: Sequence[float] = (0.9, 0.999),
        part_lr: Mapping[str, float] | None = None,
    ) -> None:
        _check_numbers(weight_decay, betas, lr=lr, adamw_lr=adamw_lr)
        matrices, others = _split(model)
        rates = _part_rates(model, part_lr or {})
        self.parts: list[Optimizer] = []
        if matrices:
            muons = [
                {"name": f"{prefix}muon", "params": own, "lr": part_rate or lr}
                for prefix, part_rate, own in _by_part(matrices.values(), rates)
            ]
            self.parts.append(Muon(muons, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        if others:
            groups = [
                group
                for prefix, part_rate, own in _by_part(others, rates)
                for group in _by_fan_in(own, model, adamw_lr * (part_rate or lr) / lr, prefix)
            ]
            self.parts.append(AdamW(groups, lr=adamw_lr, betas=(betas[0], betas[1]), weight_decay=0.0))
        super().__init__([{"params": [*matrices.values(), *others]}], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # A schedule writes into `param_groups`: they must be the very dicts that the two optimizers read.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def cosine_with_warmup(optimizer: Optimizer, total_steps: int, warmup_ratio: float) -> LambdaLR:
    """Linear warm-up over `warmup_ratio` of the steps, then half a cosine that reaches zero after the last."""
    warmup = max(1, round(total_steps * warmup_ratio))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total_steps - warmup))))

    return LambdaLR(optimizer, factor)


def _split(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters: matrices of hidden layers by name; embeddings, heads, norms, biases and convolutions.

    Raises:
        ConfigError: there are none.
    """
    apart = {id(weight) for weight in _embedding_like(model)}
    matrices, others = {}, []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim == 2 and id(parameter) not in apart:
            matrices[name] = parameter
        else:
            others.append(parameter)
    if not matrices and not others:
        raise ConfigError("no parameter of the model is trainable: set a part of model.adapt to full or lora")
    return matrices, others


def _check_numbers(weight_decay: float, betas: Sequence[float], **rates: float) -> None:
    if len(betas) != 2:
        raise ConfigError(f"optim.betas={[*betas]}: expected two, such as [0.9, 0.999]")
    if not 0 <= weight_decay < math.inf:
        raise ConfigError(f"optim.weight_decay={weight_decay}: expected a number from 0")
    for name, rate in rates.items():
        if not 0 < rate < math.inf:
            raise ConfigError(f"optim.{name}={rate}: expected a positive rate, such as 3e-5")


def _part_rates(model: nn.Module, part_lr: Mapping[str, float]) -> dict[int, tuple[str, float]]:
    """`id` of a parameter → its part and the part's own rate, for the parts that have one."""
    parts = model.parts() if isinstance(model, Macaw) else {}
    for part, rate in part_lr.items():
        if part not in parts:
            raise ConfigError(f"optim.part_lr.{part} names no part of the model: expected one of {sorted(parts)}")
        if not (isinstance(rate, int | float) and rate > 0):
            raise ConfigError(
                f"optim.part_lr.{part}={rate}: expected a positive rate; model.adapt.{part}=frozen stops it"
            )
    return {id(p): (part, rate) for part, rate in part_lr.items() for p in parts[part].parameters()}


def _by_part(
    parameters: Iterable[nn.Parameter], rates: Mapping[int, tuple[str, float]]
) -> list[tuple[str, float | None, list[nn.Parameter]]]:
    """Prefix for the group's name, rate and parameters of each part with a rate of its own, and of all others."""
    found: dict[tuple[str, float | None], list[nn.Parameter]] = {}
    for parameter in parameters:
        part, rate = rates.get(id(parameter), ("", None))
        found.setdefault((f"{part}/" if part else "", rate), []).append(parameter)
    return [(prefix, rate, own) for (prefix, rate), own in found.items()]


def _by_fan_in(
    parameters: Iterable[nn.Parameter], model: nn.Module, lr: float, prefix: str = ""
) -> list[dict[str, Any]]:
    """Parameter groups: convolutions with a rate that falls with their fan-in, the rest with `lr`."""
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d)}
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter in parameters:
        fan_in = parameter[0].numel() if id(parameter) in kernels else 1
        groups.setdefault(max(fan_in, FULL_RATE_FAN_IN), []).append(parameter)
    return [
        {
            "name": f"{prefix}adamw" + (f"/fan_in_{fan_in}" if fan_in > FULL_RATE_FAN_IN else ""),
            "params": group,
            "lr": lr * FULL_RATE_FAN_IN / fan_in,
        }
        for fan_in, group in groups.items()
    ]


def _embedding_like(model: nn.Module) -> Iterable[Tensor]:
    """Embeddings, output heads and learned positions: their rows are looked up one by one, not multiplied through."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module.weight
        yield from (p for name, p in module.named_parameters(recurse=False) if "embedding" in name)
        head = getattr(module, "get_output_embeddings", lambda: None)()
        if head is not None:
            yield head.weight
