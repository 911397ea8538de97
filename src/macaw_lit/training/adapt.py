"""Which weights are trained: each part in full, not at all, or through low-rank adapters beside its linear layers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console
from rich.table import Table
from torch import nn

from macaw_lit.errors import ConfigError, in_one_line
from macaw_lit.model import Macaw
from macaw_lit.training.nf4 import layers_in_4_bits, quantise, restore_weights
from macaw_lit.training.strategies import values_of

_MODES = "expected full, frozen, or lora with any of r, alpha, dropout, targets, bits, such as {lora: {r: 8}}"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al., 2021): W + (alpha / r) · B A, B zero at first, W at rest.

    Attributes:
        targets: ends of the names of the linear layers that get one, such as `q_proj`; None takes all of the part but a
            language model's output head. Linear layers within torch's own attention, as CLIP has, are none.
        bits: 4 keeps all linear layers of the part but the output head in NF4, targets or not (QLoRA, Dettmers et al.,
            2023); None as they are.
    """

    r: int = 8
    alpha: int | float = 16
    dropout: int | float = 0.0
    targets: Sequence[str] | None = None
    bits: int | None = None


class PartReport(NamedTuple):
    """What is trained of a part: numbers of its parameters' values, and the trained names with numbers as `*`."""

    part: str
    mode: str
    trained: int
    values: int
    names: list[str]


def adapt(model: Macaw, settings: Mapping[str, Any]) -> list[nn.Module]:
    """Freeze parts of `model`, or put adapters into them, and return the frozen parts, which are to stay in eval mode.

    Args:
        settings: a name of an encoder, `aligners` or `llm` → `full`, `frozen`, or `{"lora": {…}}` with the fields of
            `Lora`. A part that is not named is trained in full, as in the paper.

    Raises:
        ConfigError: no such part or mode, or nothing is left to train.
    """
    parts = model.parts()
    frozen = []
    for name, mode in settings.items():
        if name not in parts:
            raise ConfigError(f"model.adapt.{name} names no part of the model: expected one of {sorted(parts)}")
        if mode == "frozen":
            frozen.append(parts[name].requires_grad_(False).eval())
        elif isinstance(mode, Mapping) and set(mode) == {"lora"}:
            _add_lora(name, parts[name], mode["lora"] or {})
        elif mode != "full":
            raise ConfigError(f"model.adapt.{name}={mode}: {_MODES}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("model.adapt freezes every part, so that nothing is left to train: set one to full or lora")
    return frozen


def in_4_bits(settings: Mapping[str, Any]) -> bool:
    """Whether `adapt` will keep layers of any part in 4 bits."""
    loras = [mode.get("lora") for mode in settings.values() if isinstance(mode, Mapping)]
    return any(isinstance(lora, Mapping) and lora.get("bits") is not None for lora in loras)


def merge(model: nn.Module) -> None:
    """Add each adapter's product to the weight that it stands beside, and take the adapters away.

    Layers in 4 bits become plain ones first, in the precision of the model's other weights, and stay so.
    """
    restore_weights(model, next(model.parameters()).dtype)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()  # in place: a safe merge leaves a copy in memory of what may be mapped from a file
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.get_base_layer())


def report(model: Macaw) -> list[PartReport]:
    """What is trained, part by part."""
    rows = []
    for part, module in model.parts().items():
        parameters = dict(module.named_parameters())
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        quantised = layers_in_4_bits(module)
        lora = any("lora_" in name for name in parameters)
        rows.append(
            PartReport(
                part,
                "qlora, 4 bits" if quantised else "lora" if lora else "full" if trained else "frozen",
                sum(map(values_of, trained.values())),
                sum(map(values_of, parameters.values())) + sum(layer.values for layer in quantised.values()),
                list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in trained)),
            )
        )
    return rows


class PrintTrained(Callback):
    """Prints what is trained when training starts: a table by part, and the adapters' names."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        model: Any = pl_module
        rows = report(model.model)
        table = Table("part", "mode", "trained", "of", title="what is trained")
        for row in rows:
            table.add_row(row.part, row.mode, f"{row.trained:,}", f"{row.values:,}")
        total = (sum(row.trained for row in rows), sum(row.values for row in rows))
        table.add_row("all", "", *(f"{count:,}" for count in total), style="bold")
        console = Console()
        console.print(table)
        for row in rows:
            if "lora" in row.mode:
                console.print(f"{row.part}: {', '.join(row.names)}", highlight=False, markup=False)


def _add_lora(name: str, part: nn.Module, fields: Mapping[str, Any]) -> None:
    try:
        lora = Lora(**fields)
    except TypeError as error:
        raise ConfigError(f"model.adapt.{name}={{lora: {dict(fields)}}} ({in_one_line(error)}): {_MODES}") from error
    if lora.bits is not None and not (isinstance(lora.bits, int) and lora.bits == 4):
        raise ConfigError(
            f"model.adapt.{name}.lora.bits={lora.bits}: expected 4, the number, for weights at rest in NF4, or null"
        )
    linear = _linear_layers(part)
    chosen = [
        layer
        for layer in linear
        if lora.targets is None or any(f".{layer}".endswith(f".{target}") for target in lora.targets)
    ]
    if not chosen:
        known = ", ".join(sorted({layer.rpartition(".")[2] for layer in linear})) or "none"
        raise ConfigError(f"model.adapt.{name}: no linear layer for LoRA; targets={lora.targets}; the part has {known}")
    at_rest = [part.get_submodule(layer) for layer in linear] if lora.bits else []
    transposed = any(type(part.get_submodule(layer)).__name__ == "Conv1D" for layer in chosen)
    try:
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only divides it by r
            lora_dropout=lora.dropout,
            target_modules=chosen,
            fan_in_fan_out=transposed,
        )
        with _default_type(part.get_submodule(chosen[0]).weight.dtype):  # peft casts others, which may have no memory
            inject_adapter_in_model(config, part)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.adapt.{name}={{lora: {dict(fields)}}} ({in_one_line(error)}): {_MODES}") from error
    quantise(part, at_rest)  # last: peft asks the layers of which type they are


@contextmanager
def _default_type(dtype: Any) -> Iterator[None]:
    """Within, new parameters have this type; a Trainer's precision may have chosen another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _linear_layers(part: nn.Module) -> list[str]:
    """Names of the layers that an adapter can stand beside: called as modules, and not an output head."""
    heads = [getattr(module, "get_output_embeddings", lambda: None)() for module in part.modules()]
    within = [id(child) for m in part.modules() if isinstance(m, nn.MultiheadAttention) for child in m.modules()]
    return [
        name
        for name, module in part.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")  # GPT-2's linear layer, not torch's
        and not isinstance(module, nn.Conv1d)
        and not any(module is head for head in heads)
        and id(module) not in within
    ]
