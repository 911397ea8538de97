"""Weight files: read without executing anything, loaded only if every wanted key arrives, and named by a hash."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from macaw_lit.errors import WeightsError, in_one_line

_LISTED_KEYS = 5  # of each kind of fault in a message; the counts are always whole
_IN_FOLDERS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
"""Names that transformers and open_clip give to weights; with `.index.json` behind them, to the index of shards."""


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


def read_weights(path: Path) -> dict[str, object]:
    """Read a `.safetensors`, `.pt`, `.pth` or `.bin` file, or a folder of transformers or open_clip, onto the CPU.

    Raises:
        WeightsError: a file is missing, damaged, of another format, or holds code beside tensors.
    """
    if path.is_dir():
        shards = shards_of(path).items()
        return {key: value for file, listed in shards for key, value in read_shard(file, listed).items()}
    if not path.is_file():
        raise WeightsError(f"weights file {path} not found: give the path of a .safetensors, .pt, .pth or .bin file")
    if path.suffix not in {".safetensors", ".pt", ".pth", ".bin"}:
        raise WeightsError(f"weights file {path} ends with {path.suffix!r}: expected .safetensors, .pt, .pth or .bin")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        _compare_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles and TorchScript, just before they are refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, BadZipFile) as error:
        if "weights_only" in str(error):  # TorchScript, as OpenAI publishes CLIP, or the tar of PyTorch's first days
            raise WeightsError(
                f"weights {path} is a TorchScript program or a tar, which only running it reads: if you trust it, "
                'safetensors.torch.save_file(torch.jit.load(path).state_dict(), "clip.safetensors")'
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


def _compare_checksums(path: Path) -> None:
    """PyTorch stores a checksum beside every tensor of its archives, but does not look at it when it reads them."""
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        if altered := archive.testzip():
            raise BadZipFile(f"the checksum of {altered} is another")


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
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def shards_of(folder: Path) -> dict[Path, set[str] | None]:
    """The files of a folder's weights, each with the names that an index says it holds; None where there is no index.

    Raises:
        WeightsError: there are no weights, or not all files that the index names.
    """
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return {folder / name: None}
        if (folder / f"{name}.index.json").is_file():
            return _read_index(folder / f"{name}.index.json")
    raise WeightsError(f"{folder} holds no weights: expected {_IN_FOLDERS[0]}, {_IN_FOLDERS[2]} or an index of shards")


def read_shard(file: Path, listed: set[str] | None) -> dict[str, object]:
    """One of `shards_of` a folder, read as `read_weights` does.

    Raises:
        WeightsError: it cannot be read, or does not hold what the index says.
    """
    found = read_weights(file)
    if listed is not None and found.keys() != listed:
        key = min(found.keys() ^ listed)
        raise WeightsError(f"{file} and the index beside it differ, as in {key}: fetch both again")
    return found


def check_files(folder: Path) -> None:
    """Read a folder's weights once, before another library does, which would not see what `read_weights` sees.

    Raises:
        WeightsError: a file is missing, damaged or altered, or holds code beside tensors.
    """
    for file, listed in shards_of(folder).items():
        read_shard(file, listed)


def _read_index(index: Path) -> dict[Path, set[str] | None]:
    weight_map = read_facts(index).get("weight_map")
    if not isinstance(weight_map, dict) or any(Path(str(name)).name != name for name in weight_map.values()):
        raise WeightsError(f"{index} has no weight_map of names to files beside it: fetch it again")
    shards = sorted(set(weight_map.values()))
    lost = [name for name in shards if not (index.parent / name).is_file()]
    if lost:
        raise WeightsError(f"{index.parent} lacks {len(lost)} of {len(shards)} shards: {', '.join(lost)}; fetch them")
    return {index.parent / shard: {key for key, name in weight_map.items() if name == shard} for shard in shards}
