"""The whole model: encode, align, fill the slots, run the language model."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from macaw_lit.aligners.base import Aligner
from macaw_lit.encoders.base import Encoder
from macaw_lit.encoders.frames import FrameSequence
from macaw_lit.errors import ConfigError, WeightsError, in_one_line
from macaw_lit.llms.base import LLM
from macaw_lit.types import Batch, Media, MediaSpec, Output
from macaw_lit.weights import load_exactly, read_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"
_FORMAT = "macaw-lit/1"

Part = TypeVar("Part", bound=nn.Module)


class Modality(nn.Module):
    """How one kind of medium becomes soft tokens: which encoder it goes through, frames if it has them, its aligner."""

    def __init__(self, encoder: str, aligner: Aligner, frames: FrameSequence | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.aligner = aligner
        self.frames = frames


class Macaw(nn.Module):
    """A language model that sees, watches and listens (Fig. 1 of the paper).

    Encoders are named apart from the kinds they serve, so that images and video frames can share one.

    Args:
        encoders: name → encoder.
        modalities: kind, as in `<kind>` and `</kind>` → its way through an encoder and an aligner.
        llm: the language model.
        config: what `from_config` needs to build the same model again; stored in the model folder.

    Raises:
        ConfigError: a modality names an encoder that is not there, or an encoder serves none.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        modalities: Mapping[str, Modality],
        llm: LLM,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.modalities = nn.ModuleDict(modalities)
        self.llm = llm
        self.config = dict(config)
        served = {modality.encoder for modality in modalities.values()}
        if served != set(encoders):
            raise ConfigError(f"modalities use the encoders {sorted(served)}, but the model has {sorted(encoders)}")

    def specs(self) -> dict[str, MediaSpec]:
        """What the data side must know of each modality."""
        specs = {}
        for kind, modality in self._modalities().items():
            encoder, frames = self._encoder(modality.encoder), modality.frames
            specs[kind] = MediaSpec(
                decoder="video" if frames is not None else encoder.medium,
                transform=encoder.transform,
                num_tokens=modality.aligner.num_tokens,
                shape=encoder.input_shape if frames is None else (frames.frames, *encoder.input_shape),
                frames=None if frames is None else frames.frames,
            )
        return specs

    def encode(self, media: Mapping[str, Media]) -> dict[str, Float[Tensor, "n s e"]]:
        """Features by kind. Each encoder is called exactly once, kinds that share it together, even on zero items."""
        features: dict[str, Tensor] = {}
        for name in self.encoders:
            served = {kind: modality for kind, modality in self._modalities().items() if modality.encoder == name}
            inputs = [
                media[kind].values if modality.frames is None else modality.frames.unroll(media[kind].values)
                for kind, modality in served.items()
            ]
            encoded = self.encoders[name](torch.cat(inputs)).split([len(values) for values in inputs])
            for (kind, modality), part in zip(served.items(), encoded, strict=True):
                features[kind] = part if modality.frames is None else modality.frames(part)
        return features

    def embed(self, batch: Batch) -> Float[Tensor, "b t d"]:
        """Embeddings of the rows, soft tokens in their slots.

        Raises:
            ConfigError: a kind has more or fewer slots than soft tokens.
        """
        embeds = self.llm.embed(batch.input_ids)  # [B, T, D]
        features = self.encode(batch.media)
        for kind, modality in self._modalities().items():
            tokens = modality.aligner(features[kind], self.llm.table)  # [N, K, D]
            slots = batch.media[kind].slots
            if int(slots.sum()) != tokens.shape[0] * tokens.shape[1]:
                raise ConfigError(
                    f"{int(slots.sum())} {kind} slots for {tokens.shape[0]} items of {tokens.shape[1]} soft tokens: "
                    "collate with the specs of this model"
                )
            embeds = embeds.masked_scatter(slots[..., None], tokens.to(embeds.dtype))
        return embeds

    def forward(self, batch: Batch) -> Output:
        output: Output = self.llm(self.embed(batch), batch.attention_mask, batch.labels)
        return output

    @torch.no_grad()
    def generate(self, batch: Batch, **generation: Any) -> Int[Tensor, "b new"]:
        """New ids for left-padded rows; `generation` goes to the language model's own `generate`."""
        return self.llm.generate(self.embed(batch), batch.attention_mask, **generation)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Macaw":
        """Build from sizes, without weights: each encoder, the aligner and the LLM name their class by `_target_`.

        `aligner` holds what the modalities have in common, `modalities.<kind>.aligner` what is their own.

        Raises:
            ConfigError: a part is missing or unknown, or its arguments do not fit.
        """
        encoders = {
            name: build_part(_section(config, "encoders", name), Encoder) for name in _section(config, "encoders")
        }
        kinds = _section(config, "modalities")
        llm = build_part(_section(config, "llm"), LLM, delimiters=delimiters(kinds))
        modalities = {}
        for kind in kinds:
            part = _section(config, "modalities", kind)
            name, frames = str(part.get("encoder")), part.get("frames")
            if name not in encoders:
                raise ConfigError(f"modality {kind} wants the encoder {name!r}, not among {sorted(encoders)}")
            encoder = encoders[name]
            aligner = build_part(
                {**_section(config, "aligner"), **_section(config, "modalities", kind, "aligner")},
                Aligner,
                dim_in=encoder.dim,
                seq_len=encoder.seq_len * (frames or 1),
                dim_out=llm.dim,
            )
            sequence = FrameSequence(frames, encoder.dim) if frames else None
            modalities[kind] = Modality(name, aligner, sequence)
        return cls(encoders, modalities, llm, config)

    def load_pretrained(self, sources: Mapping[str, str | None]) -> None:
        """Load weights by part: names of encoders, or `llm`, → file or folder; None leaves a part as it was built."""
        parts: dict[str, Any] = {**self.encoders, "llm": self.llm}
        for name, source in sources.items():
            if name not in parts:
                raise ConfigError(f"pretrained.{name} names no part of the model: expected one of {sorted(parts)}")
            if source is not None:
                parts[name].load_pretrained(source)

    def save_pretrained(self, folder: Path) -> None:
        """Write all a predictor needs: weights as safetensors, the resolved config, the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        llm = {**self.config["llm"], **self.llm.save_config(folder / TOKENIZER_FOLDER), "tokenizer": TOKENIZER_FOLDER}
        config = {"format": _FORMAT, **self.config, "llm": llm}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        tied = _tied_names(state)
        save_file({name: tensor for name, tensor in state.items() if name not in tied}, folder / WEIGHTS_FILE)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Macaw":
        """Read a folder written by `save_pretrained`, ready to predict.

        Raises:
            WeightsError: the folder is no model folder, or its weights do not fit its config.
        """
        config = _read_model_config(folder)
        try:
            config["llm"] = {**_section(config, "llm"), "tokenizer": str(folder / TOKENIZER_FOLDER)}
            model = cls.from_config(config)
        except ConfigError as error:
            raise WeightsError(f"{folder / CONFIG_FILE}: {error}") from error
        state: dict[str, Any] = read_weights(folder / WEIGHTS_FILE)
        for copy, original in _tied_names(model.state_dict()).items():
            if original in state:
                state[copy] = state[original]
        load_exactly(model, state, str(folder / WEIGHTS_FILE))
        return model.eval()

    def _modalities(self) -> dict[str, Modality]:
        return dict(self.modalities.items())  # type: ignore[arg-type]  # nn.ModuleDict forgets its values' class

    def _encoder(self, name: str) -> Encoder:
        encoder = self.encoders[name]
        assert isinstance(encoder, Encoder)
        return encoder


def delimiters(kinds: Mapping[str, Any]) -> list[str]:
    """The tokens around each kind's block: `<image>` and `</image>`, and so on."""
    return [token for kind in kinds for token in (f"<{kind}>", f"</{kind}>")]


def build_part(config: Mapping[str, Any], base: type[Part], **wiring: Any) -> Part:
    """Build one part from its config: `_target_` is a class of this package, the rest its arguments.

    Only classes of this package that are a `base` are built, because a config may come from a stranger's model folder.

    Raises:
        ConfigError: no such class, or arguments that it does not take.
    """
    arguments = {**config, **wiring}
    target = str(arguments.pop("_target_", ""))
    module_name, _, class_name = target.rpartition(".")
    part: Any = None
    if module_name.startswith("macaw_lit."):
        try:
            part = getattr(importlib.import_module(module_name), class_name, None)
        except ModuleNotFoundError:
            part = None
    if not (isinstance(part, type) and issubclass(part, base)):
        raise ConfigError(
            f"_target_ {target!r} is no {base.__name__} of macaw_lit: see the YAMLs of its group in conf/"
        )
    try:
        return part(**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # a misspelt name, a size of 0 or -1
        raise ConfigError(f"{class_name}: {in_one_line(error)}; see its arguments in {module_name}") from error


def _section(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = config
    for name in path:
        found = found.get(name)
        if not isinstance(found, Mapping):
            raise ConfigError(f"model.{'.'.join(path)} is {found!r}: expected a mapping, as in conf/model/")
    return found


def _read_model_config(folder: Path) -> dict[str, Any]:
    remedy = "give a folder that training wrote, such as logs/train/runs/<time>/model"
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise WeightsError(f"{folder} is no model folder (it has no {CONFIG_FILE}): {remedy}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error}): {remedy}") from error
    if not isinstance(config, dict) or config.pop("format", None) != _FORMAT:
        raise WeightsError(f"{path} does not say format {_FORMAT!r}: {remedy}")
    return config


def _tied_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names whose tensor is stored under an earlier name as well, as tied embeddings are: copy → original."""
    first: dict[tuple[int, torch.Size], str] = {}
    tied = {}
    for name, tensor in state.items():
        original = first.setdefault((tensor.data_ptr(), tensor.shape), name)
        if original != name and tensor.numel():
            tied[name] = original
    return tied
