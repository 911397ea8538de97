"""Weights are loaded only if every wanted key arrives, and named by a hash."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from macaw_lit.deferred import materialised
from macaw_lit.errors import WeightsError, in_one_line

_LISTED_KEYS = 5  # of each kind of fault in a message; the counts are always whole


@dataclass(frozen=True)
class Coverage:
    """What became of every weight in one load: names as the module has them, so that nothing is lost unseen.

    Attributes:
        source: where the weights came from, as it was given.
        loaded: names that arrived.
        missing, unexpected, mismatched: names of wanted weights that the source lacks, of weights in the source that
            nothing here wants, of weights of another shape; with any of them `insist` raises and nothing is copied.
        left_out: names in the source that are known to be of no use here, such as a text tower or a decoder.
        checked: what the source says of itself and the module was found to agree with, as `heads=12`.
        sha256: identity of the loaded tensors, see `fingerprint`; empty if none were loaded.
    """

    source: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    sha256: str = ""

    def insist(self, module: nn.Module) -> None:
        """Name the keys of each kind of fault, if there are any.

        Raises:
            WeightsError: there are.
        """
        faults = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.mismatched}
        if any(faults.values()):
            listed = "; ".join(
                f"{len(keys)} {fault}: {', '.join(keys[:_LISTED_KEYS])}{', …' if len(keys) > _LISTED_KEYS else ''}"
                for fault, keys in faults.items()
                if keys
            )
            raise WeightsError(
                f"{self.source} does not fit {type(module).__name__} ({listed}): "
                "give weights of the configured size, or configure theirs"
            )

    def identity(self) -> dict[str, Any]:
        """The report in plain values, keys counted: what is kept with a model, and so no folders of this machine."""
        counted = ("loaded", "missing", "unexpected", "mismatched", "left_out")
        counts = {name: len(getattr(self, name)) for name in counted}
        source = Path(self.source)
        origin = source.name if source.expanduser().exists() else self.source  # or a hub id
        return {"source": origin, "sha256": self.sha256, **counts, "checked": list(self.checked)}


def tensors_under(state: Mapping[str, object], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key starts with `prefix`, with the prefix cut off."""
    return {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }


def read_facts(path: Path) -> dict[str, Any]:
    """What a JSON file beside weights says of them; nothing where there is no such file.

    Raises:
        WeightsError: the file holds something else than a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({in_one_line(error)}): fetch it again") from error
    if not isinstance(facts, dict):
        raise WeightsError(f"{path} holds a {type(facts).__name__}: expected a JSON object; fetch it again")
    return facts


def check_facts(stated: Mapping[str, object], own: Mapping[str, object], origin: str, remedy: str) -> tuple[str, ...]:
    """Hold what a source says of itself against what a module is; activation and heads cannot be told from shapes.

    Returns:
        what was stated and agrees, as `name=value`.

    Raises:
        WeightsError: something stated differs.
    """
    known = {name: value for name, value in stated.items() if name in own}
    wrong = [name for name, value in known.items() if value != own[name]]
    if wrong:
        theirs = ", ".join(f"{name}={known[name]}" for name in wrong)
        ours = ", ".join(f"{name}={own[name]}" for name in wrong)
        raise WeightsError(f"{origin} was made with {theirs}, but is configured with {ours}: {remedy}")
    return tuple(f"{name}={value}" for name, value in known.items())


def load_exactly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    origin: str,
    left_out: Iterable[str] = (),
    checked: Iterable[str] = (),
    assign: bool = False,
) -> Coverage:
    """Copy `state` into `module` if, and only if, keys and shapes are the same.

    Args:
        left_out, checked: for the report.
        assign: take the tensors themselves, in their precision, as a module on the meta device needs.

    Raises:
        WeightsError: keys are missing or unexpected, or shapes differ; nothing was copied.
    """
    own = module.state_dict()
    coverage = Coverage(
        source=origin,
        loaded=tuple(key for key in own if key in state and state[key].shape == own[key].shape),
        missing=tuple(sorted(own.keys() - state.keys())),
        unexpected=tuple(sorted(state.keys() - own.keys())),
        mismatched=tuple(
            f"{key} {list(state[key].shape)}, wanted {list(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
        left_out=tuple(sorted(left_out)),
        checked=tuple(checked),
    )
    coverage.insist(module)
    module.load_state_dict(dict(state), assign=assign)
    return replace(coverage, sha256=fingerprint(module.state_dict()))


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = materialised(state[name]).detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
