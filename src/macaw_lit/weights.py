"""Weight files: read without executing anything, loaded only if every wanted key arrives."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from macaw_lit.errors import WeightsError, in_one_line

_LISTED_KEYS = 5  # of each kind of fault in a message; the counts are always whole


def read_weights(path: Path) -> dict[str, object]:
    """Read a `.safetensors`, `.pt`, `.pth` or `.bin` file onto the CPU.

    Raises:
        WeightsError: the file is missing, damaged, of another format, or holds code beside tensors.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} not found: give the path of a .safetensors, .pt, .pth or .bin file")
    if path.suffix not in {".safetensors", ".pt", ".pth", ".bin"}:
        raise WeightsError(f"weights file {path} ends with {path.suffix!r}: expected .safetensors, .pt, .pth or .bin")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        if "weights_only" in str(error):  # TorchScript, as OpenAI publishes CLIP, or the tar of PyTorch's first days
            raise WeightsError(
                f"weights file {path} is a TorchScript program or a tar: save its state_dict() as .safetensors"
            ) from error
        raise WeightsError(f"weights file {path} is damaged ({in_one_line(error)}): fetch or write it again") from error
    except Exception as error:  # the restricted reader raises a class of the module that this house does not import,
        # with an advice to lift the restriction that is not to be passed on
        raise WeightsError(
            f"weights file {path} is damaged or holds more than tensors: "
            "fetch it again, or convert it to .safetensors where it came from"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"weights file {path} holds a {type(state).__name__}: expected a state dict")
    return state


def tensors_under(state: Mapping[str, object], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key starts with `prefix`, with the prefix cut off."""
    return {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy `state` into `module` if, and only if, keys and shapes are the same.

    Raises:
        WeightsError: keys are missing or unexpected, or shapes differ; nothing was copied.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = [
        f"{key} {list(state[key].shape)}, wanted {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        listed = "; ".join(
            f"{len(keys)} {fault}: {', '.join(keys[:_LISTED_KEYS])}{', …' if len(keys) > _LISTED_KEYS else ''}"
            for fault, keys in faults.items()
            if keys
        )
        raise WeightsError(
            f"{origin} does not fit {type(module).__name__} ({listed}): "
            "give weights of the configured size, or configure theirs"
        )
    module.load_state_dict(dict(state))
