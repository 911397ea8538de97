"""The files of a model folder: written whole or not at all, read without executing anything, every weight checked.

config.json               the parts and their sizes; names of tied weights; SHA-256 of them all
model*.safetensors        the weights, in shards with an index above a size
tokenizer/                of the language model, with all control tokens and the prompt as a chat template
preprocess.json           how dialogues become rows
generation_config.json    how answers are generated where nothing else is asked for
README.md                 the model card
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from macaw_lit.data.preprocess import Preprocessor, Tokenizer
from macaw_lit.data.prompt import Prompt
from macaw_lit.errors import ConfigError, WeightsError, in_one_line
from macaw_lit.types import MediaSpec
from macaw_lit.weight_files import read_weights
from macaw_lit.weights import fingerprint, load_exactly, read_facts

logging.getLogger("huggingface_hub").setLevel(logging.WARNING)  # it reports every file

CONFIG_FILE = "config.json"
PREPROCESS_FILE = "preprocess.json"
GENERATION_FILE = "generation_config.json"
CARD_FILE = "README.md"
TOKENIZER_FOLDER = "tokenizer"
_FORMAT = "macaw-lit/1"
_INDEX_FILE = "model.safetensors.index.json"
_AGAIN = "copy the whole model folder again"


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A new folder to write into; when the block ends without an error, its files take their places in `folder`.

    Where `folder` does not exist or is empty this is one rename. Files of other names that it holds stay.

    Raises:
        ConfigError: `folder` is a file.
    """
    folder = folder.resolve()
    if folder.is_file():
        raise ConfigError(f"{folder} is a file: give a folder to write the model into")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as made:
        new = Path(made) / "new"
        new.mkdir()  # with the usual permissions, which the one around it lacks
        yield new
        if not folder.exists() or not any(folder.iterdir()):
            new.rename(folder)
            return
        names = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        for stale in {*folder.glob("model*.safetensors"), folder / _INDEX_FILE} - {folder / name for name in names}:
            stale.unlink(missing_ok=True)
        for name in sorted(names, key=lambda name: str(name) == CONFIG_FILE):  # it vouches for the rest: last
            (folder / name).parent.mkdir(exist_ok=True)
            (new / name).replace(folder / name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented, ending with a line break."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """What `write_model` wrote into the folder's config.

    Raises:
        WeightsError: the folder is no model folder.
    """
    path = folder / CONFIG_FILE
    remedy = "give a folder that training wrote, such as logs/train/runs/<time>/model"
    if not path.is_file():
        raise WeightsError(f"{folder} is no model folder (it has no {CONFIG_FILE}): {remedy}")
    config = read_facts(path)
    if config.pop("format", None) != _FORMAT:
        raise WeightsError(f"{path} does not say format {_FORMAT!r}: {remedy}")
    return config


def write_model(
    folder: Path, module: nn.Module, config: Mapping[str, Any], facts: Mapping[str, Any], max_shard_size: str
) -> None:
    """The weights, each stored once, and the config; its `weights` say what `load_weights` needs, beside `facts`."""
    state = module.state_dict()
    tied = _tied_names(state)
    save_torch_state_dict(
        {name: tensor for name, tensor in state.items() if name not in tied}, folder, max_shard_size=max_shard_size
    )
    weights = {"sha256": fingerprint(state), "tied": tied, **facts}
    write_json(folder / CONFIG_FILE, {"format": _FORMAT, **config, "weights": weights})
    for path in folder.glob("model*.safetensors"):  # which safetensors lets nobody but their owner read
        path.chmod((folder / CONFIG_FILE).stat().st_mode)


def load_weights(folder: Path, module: nn.Module, facts: Mapping[str, Any]) -> None:
    """Put the folder's weights into `module`, whose parameters may be on the meta device, in the precision on disk.

    Args:
        facts: the config's `weights`.

    Raises:
        WeightsError: a file is missing, damaged or not the one that was written, or weights do not fit the module.
    """
    found = read_weights(folder)  # cloned, because what safetensors gives are views of the files
    state = {name: value.clone() for name, value in found.items() if isinstance(value, Tensor)}
    for copy, original in facts.get("tied", {}).items():
        if original in state:
            state[original] = state[copy] = nn.Parameter(state[original])
    coverage = load_exactly(module, state, f"model.safetensors of {folder}", assign=True)
    if coverage.sha256 != facts.get("sha256"):
        raise WeightsError(f"model.safetensors of {folder} is not what was written (its SHA-256 differs): {_AGAIN}")


def write_preprocess(folder: Path, preprocess: Preprocessor) -> None:
    """The settings of `preprocess` that shape a row; its tokenizer and encoder inputs follow from the model."""
    settings = {name: getattr(preprocess, name) for name in ("order", "layout", "missing", "max_length")}
    write_json(folder / PREPROCESS_FILE, {**settings, "prompt": asdict(preprocess.prompt)})


def read_preprocess(folder: Path, tokenizer: Tokenizer, specs: Mapping[str, MediaSpec]) -> Preprocessor:
    """The preprocessor that the folder describes.

    Raises:
        WeightsError: its settings are missing, or do not fit the model.
    """
    settings = read_facts(folder / PREPROCESS_FILE)
    try:
        prompt = Prompt(**settings.pop("prompt"))
        return Preprocessor(tokenizer, specs, prompt=prompt, **settings)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise WeightsError(f"{folder / PREPROCESS_FILE} cannot be used ({in_one_line(error)}): {_AGAIN}") from error


def vocabulary_sha256(tokenizer: Any) -> str:
    """SHA-256 over tokens and ids: rows of the embedding table mean nothing without them."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _tied_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names whose tensor is stored under an earlier name as well, as tied embeddings are: copy → original."""
    first: dict[tuple[int, torch.Size], str] = {}
    tied = {}
    for name, tensor in state.items():
        original = first.setdefault((tensor.data_ptr(), tensor.shape), name)
        if original != name and tensor.numel():
            tied[name] = original
    return tied
