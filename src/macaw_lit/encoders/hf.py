"""What the encoders of transformers have in common, whichever medium they are for."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModel, logging

from macaw_lit.encoders.base import Encoder
from macaw_lit.errors import ConfigError, MacawError, WeightsError, in_one_line, of_folder
from macaw_lit.hub import local_folder
from macaw_lit.weight_files import check_files
from macaw_lit.weights import Coverage, check_facts, load_exactly, read_facts

logging.set_verbosity_error()
logging.disable_progress_bar()  # or two bars stand above every error

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# Settings that change what is computed from the same weights; then some that only sound like it.
_FACTS = re.compile(r"act|head|eps|norm|size|stride|kernel|scal|pos")
_NO_FACTS = re.compile(r"dropout|vocab|decoder|classifier|factor|mask|adapter|target|projection")
_CHANCES = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False}
_FACTORY = ("_type", "_class")  # names of the classes that made a file, which differ from version to version


class ItemTransform:
    """A processor of transformers, applied to one item; what it gives goes into the encoder as it is."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def arguments(self, decoded: np.ndarray) -> dict[str, Any]:
        """What the processor is to be called with."""
        raise AssertionError(self)

    def __call__(self, decoded: np.ndarray) -> Float[Tensor, "..."]:
        found = self.processor(**self.arguments(decoded), return_tensors="pt")
        values: Tensor = found[self.processor.model_input_names[0]][0]
        return values

    def settings(self) -> dict[str, Any]:
        """The processor as plain values, from which it can be built again."""
        return dict(json.loads(self.processor.to_json_string()))


class HFEncoder(Encoder):
    """An encoder of transformers, built from sizes; `load_pretrained` brings weights.

    Of a model with two towers, or with encoder and decoder, only the part for this medium is built. Parameters of it
    that have no part in the last hidden state, such as a pooler's, are frozen. LayerDrop and SpecAugment are off,
    because ranks that leave out different layers would wait for each other.

    Args:
        config: a `transformers` configuration as a dict with `model_type`, or the folder or hub id to take it from.
        processor: its preprocessing, as a dict such as `preprocessor_config.json` holds, or the folder or hub id to
            take it from; None takes it from where `config` is.
        blank: an item as it is decoded, to learn the shape of `values` from.

    Raises:
        ConfigError: config or processor cannot work, or not with each other.
    """

    def __init__(
        self, config: Mapping[str, Any] | str, processor: Mapping[str, Any] | str | None, blank: np.ndarray
    ) -> None:
        super().__init__()
        if not processor and not isinstance(config, str):
            raise ConfigError("processor is missing: without a folder to take it from, give preprocessor_config.json's")
        self.transform: ItemTransform = self._read(self.read_processor, processor or config)
        self.part = self._part(self._read(_read_config, config))
        for name in _CHANCES.keys() & self.part.to_dict().keys():
            setattr(self.part, name, _CHANCES[name])
        try:
            self._probe(blank)
        except Exception as error:  # nor for what may be wrong with a config
            raise ConfigError(
                f"{self.part.model_type} cannot encode what its processor gives ({in_one_line(error)}): "
                "give config and processor of one model, of which the processor gives all that it takes"
            ) from error

    def _probe(self, blank: np.ndarray) -> None:
        """Build it, and a copy without memory that tells what it gives and which parameters that depends on."""
        self.input_shape = tuple(self.transform(blank).shape)
        with torch.device("meta"), torch.enable_grad():
            whole = AutoModel.from_config(self.part)
            kind = type(whole.get_encoder() if self.part.is_encoder_decoder else whole)
            probe = kind(self.part).eval()
            features = probe(**{probe.main_input_name: torch.zeros(1, *self.input_shape)}).last_hidden_state
            features.sum().backward()
        if features.ndim != 3:
            raise ValueError(f"its features have shape {list(features.shape)}, not one vector a position")
        self.model = kind(self.part)
        self.unused = {name for name, parameter in probe.named_parameters() if parameter.grad is None}
        for name in self.unused:
            self.model.get_parameter(name).requires_grad_(False)
        self.skip = self._leading(features.shape[1])
        self.seq_len, self.dim = features.shape[1] - self.skip, features.shape[2]

    def forward(self, values: Float[Tensor, "n ..."]) -> Float[Tensor, "n s e"]:
        # Most of transformers' attention reshapes with -1, which is ambiguous for 0 items: encode one, and drop it.
        items = values if len(values) else values.new_zeros(1, *self.input_shape)
        features: Tensor = self.model(**{self.model.main_input_name: items}).last_hidden_state
        return features[: len(values), self.skip :]

    def load_pretrained(self, source: str) -> Coverage:
        """Load a folder or hub id of transformers that holds this encoder, alone or within a larger model.

        Raises:
            WeightsError: a wanted weight did not arrive, one within the encoder is unknown, or the folder states
                another architecture or preprocessing than this encoder has.
        """
        folder = local_folder(source)
        check_files(folder)
        try:
            checked = self._check(folder, source)
            found: Any = AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **LOCAL
            )
        except MacawError:
            raise
        except Exception as error:  # nor for what may be wrong with a folder
            raise WeightsError(f"{source} cannot be loaded: {of_folder(error)}") from error
        whole, report = found
        parts = ((name, part) for name, part in whole.named_modules() if type(part) is type(self.model))
        prefix, tower = next(parts, (None, None))
        if prefix is None:
            raise WeightsError(
                f"{source} holds a {type(whole).__name__}: expected one with a {type(self.model).__name__}"
            )
        return self._take(tower, f"{prefix}." * bool(prefix), whole, report, Coverage(source, checked=checked))

    def _take(self, tower: Any, prefix: str, whole: Any, report: Mapping[str, Any], empty: Coverage) -> Coverage:
        """Copy the encoder out of a larger model, by the report of what became of that model's weights."""
        inner = {name.partition(".")[0] for name in tower.state_dict()}

        def ours(name: str) -> str | None:
            name = name.removeprefix(f"{whole.base_model_prefix}.").removeprefix(prefix)
            return name if name.partition(".")[0] in inner else None

        missing = {name.removeprefix(prefix) for name in report["missing_keys"] if name.startswith(prefix)}
        others = [name for name in whole.state_dict() if not name.startswith(prefix)]
        replace(
            empty,
            missing=tuple(sorted(missing - self.unused)),
            unexpected=tuple(sorted(name for name in report["unexpected_keys"] if ours(name))),
            mismatched=tuple(
                f"{name} {[*found]}, wanted {[*own]}"
                for name, found, own in sorted(report["mismatched_keys"])
                if name.startswith(prefix)
            ),
        ).insist(self.model)
        for name in missing:  # nothing depends on them, but the hash must not hang on chance
            tower.get_parameter(name).data.zero_()
        left_out = {*others, *report["unexpected_keys"]} - report["missing_keys"]
        left_out |= {f"{name} (neither there nor used)" for name in missing}
        return load_exactly(self.model, tower.state_dict(), empty.source, left_out, empty.checked)

    def save_config(self) -> dict[str, Any]:
        config = {name: value for name, value in self.part.to_dict().items() if name != "_name_or_path"}
        return {"config": config, "processor": self.transform.settings()}

    def read_processor(self, processor: Mapping[str, Any] | str | Path) -> ItemTransform:
        """The transform for this medium."""
        raise AssertionError(self)

    def _check(self, folder: Path, source: str) -> tuple[str, ...]:
        """Hold config and preprocessing of the folder, if it has one, against those that this encoder has."""
        stated, own = _facts(self._part(_read_config(folder))), _facts(self.part)
        remedy = f"configure what it says, or give config: {source}"
        checked = check_facts(stated, own, source, remedy)
        if any(read_facts(folder / name) for name in ("preprocessor_config.json", "processor_config.json")):
            theirs, ours = self.read_processor(folder).settings(), self.transform.settings()
            ours = {name: value for name, value in ours.items() if not name.endswith(_FACTORY)}
            checked += check_facts(theirs, ours, source, remedy)
        return checked

    def _part(self, config: Any) -> Any:
        """The configuration of the tower for this medium, if there are several."""
        return getattr(config, {"image": "vision_config", "audio": "audio_config"}[self.medium], None) or config

    def _leading(self, positions: int) -> int:
        """Positions before the patches: the class token and registers."""
        patch = getattr(self.part, "patch_size", None)
        if self.medium != "image" or not isinstance(patch, int):
            return 0
        return max(0, positions - (self.input_shape[1] // patch) * (self.input_shape[2] // patch))

    def _read(self, reader: Callable[[Any], Any], source: Any) -> Any:
        try:
            return reader(source)
        except (ConfigError, WeightsError):
            raise
        except Exception as error:  # nor for what may be wrong with a file
            raise ConfigError(f"{source}: {in_one_line(error)}; see conf/encoder for what is expected") from error


def _read_config(config: Mapping[str, Any] | str | Path) -> Any:
    if isinstance(config, Mapping):
        sizes = dict(config)
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    return AutoConfig.from_pretrained(local_folder(str(config), weights=False), **LOCAL)


def _facts(config: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in config.to_dict().items()
        if _FACTS.search(name) and not _NO_FACTS.search(name) and not name.startswith("_")
    }
