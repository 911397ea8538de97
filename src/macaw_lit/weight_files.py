"""Weight files and folders of them, read without executing anything."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from macaw_lit.deferred import deferred
from macaw_lit.errors import WeightsError, in_one_line
from macaw_lit.weights import read_facts

_IN_FOLDERS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
"""Names that transformers and open_clip give to weights; with `.index.json` behind them, to the index of shards."""


def read_weights(path: Path) -> dict[str, object]:
    """Read a `.safetensors`, `.pt`, `.pth` or `.bin` file, or a folder of transformers or open_clip, onto the CPU.

    Raises:
        WeightsError: a file is missing, damaged, of another format, or holds code beside tensors.
    """
    if path.is_dir():
        shards = shards_of(path).items()
        return {key: value for file, listed in shards for key, value in read_shard(file, listed).items()}
    _check_name(path)
    with _readable(path):
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        _compare_checksums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    return _state_dict(state, path)


def read_deferred(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder of transformers, each read from its file when, and as often as, its values are needed.

    Raises:
        WeightsError: as `read_weights`.
    """
    found: dict[str, Tensor] = {}
    for file, listed in shards_of(folder).items():
        shard = _read_deferred(file)
        _compare_with_index(file, shard, listed)
        found |= shard
    return found


def _read_deferred(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with _readable(path), safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            types = {name: (part[:0] if part.get_shape() else part[...]).dtype for name, part in parts.items()}
            metas = {
                name: torch.empty(part.get_shape(), dtype=types[name], device="meta") for name, part in parts.items()
            }
        return {name: deferred(partial(_one_of_safetensors, path, name), meta) for name, meta in metas.items()}
    with _readable(path):
        _compare_checksums(path)
        mapped = is_zipfile(path)  # PyTorch's first format has to be read whole
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    tensors = {name: kept for name, kept in _state_dict(state, path).items() if isinstance(kept, Tensor)}
    return {
        name: deferred(
            partial(_one_of_archive, path, name) if mapped else partial(Tensor.detach, kept), kept.to("meta")
        )
        for name, kept in tensors.items()
    }


def _one_of_safetensors(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        found: Tensor = file.get_tensor(name)
        return found


def _one_of_archive(path: Path, name: str) -> Tensor:
    found: Tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[name]
    return found


def _check_name(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"weights file {path} not found: give the path of a .safetensors, .pt, .pth or .bin file")
    if path.suffix not in {".safetensors", ".pt", ".pth", ".bin"}:
        raise WeightsError(f"weights file {path} ends with {path.suffix!r}: expected .safetensors, .pt, .pth or .bin")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say in one line why a weights file cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles and TorchScript, just before they are refused
            yield
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


def _state_dict(state: object, path: Path) -> dict[str, object]:
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
    _compare_with_index(file, found, listed)
    return found


def check_files(folder: Path) -> None:
    """Read a folder's weights once, before another library does, which would not see what `read_weights` sees.

    Raises:
        WeightsError: a file is missing, damaged or altered, or holds code beside tensors.
    """
    for file, listed in shards_of(folder).items():
        read_shard(file, listed)


def _compare_with_index(file: Path, found: Mapping[str, object], listed: set[str] | None) -> None:
    if listed is not None and found.keys() != listed:
        key = min(found.keys() ^ listed)
        raise WeightsError(f"{file} and the index beside it differ, as in {key}: fetch both again")


def _read_index(index: Path) -> dict[Path, set[str] | None]:
    weight_map = read_facts(index).get("weight_map")
    if not isinstance(weight_map, dict) or any(Path(str(name)).name != name for name in weight_map.values()):
        raise WeightsError(f"{index} has no weight_map of names to files beside it: fetch it again")
    shards = sorted(set(weight_map.values()))
    lost = [name for name in shards if not (index.parent / name).is_file()]
    if lost:
        raise WeightsError(f"{index.parent} lacks {len(lost)} of {len(shards)} shards: {', '.join(lost)}; fetch them")
    return {index.parent / shard: {key for key, name in weight_map.items() if name == shard} for shard in shards}
