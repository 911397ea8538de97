"""The whole model: encode, align, fill the slots, run the language model."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from macaw_lit.aligners.base import Aligner
from macaw_lit.encoders.base import Encoder
from macaw_lit.encoders.frames import FramePositions, FrameSequence
from macaw_lit.errors import ConfigError, did_you_mean, in_one_line
from macaw_lit.folder import ModelFolder
from macaw_lit.llms.base import LLM
from macaw_lit.types import Batch, Media, MediaSpec, Output

_FRAMES = f"{FramePositions.__module__}.{FramePositions.__name__}"

Part = TypeVar("Part", bound=nn.Module)


class Modality(nn.Module):
    """How one kind of medium becomes soft tokens: which encoder it goes through, frames if it has them, its aligner."""

    def __init__(self, encoder: str, aligner: Aligner, frames: FrameSequence | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.aligner = aligner
        self.frames = frames


class Macaw(ModelFolder):
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
            encoder = self.encoders[name]
            encoded = encoder(_as_in(encoder, torch.cat(inputs))).split([len(values) for values in inputs])
            for (kind, modality), part in zip(served.items(), encoded, strict=True):
                features[kind] = part if modality.frames is None else modality.frames(_as_in(modality.frames, part))
        return features

    def embed(self, batch: Batch) -> Float[Tensor, "b t d"]:
        """Embeddings of the rows, soft tokens in their slots.

        Raises:
            ConfigError: a kind has more or fewer slots than soft tokens.
        """
        embeds = self.llm.embed(batch.input_ids)  # [B, T, D]
        features = self.encode(batch.media)
        table = _as_in(self.modalities, self.llm.table)  # once for all kinds: it is large
        for kind, modality in self._modalities().items():
            tokens = modality.aligner(_as_in(self.modalities, features[kind]), table)  # [N, K, D]
            slots = batch.media[kind].slots
            if int(slots.sum()) != tokens.shape[0] * tokens.shape[1]:
                raise ConfigError(
                    f"{int(slots.sum())} {kind} slots for {tokens.shape[0]} items of {tokens.shape[1]} soft tokens: "
                    "collate with the specs of this model"
                )
            embeds = embeds.masked_scatter(slots[..., None], tokens.to(embeds.dtype))
        return embeds

    def forward(self, batch: Batch) -> Output:
        output: Output = self.llm(self.embed(batch), batch.attention_mask, batch.labels, batch.position_ids)
        return output

    @torch.no_grad()
    def generate(
        self,
        batch: Batch | None = None,
        *,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Bool[Tensor, "b t"] | None = None,
        media: dict[str, Media] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        **generation: Any,
    ) -> Int[Tensor, "b new"]:
        """New ids for left-padded rows: a batch, or what `**batch` gives as transformers users write it.

        `generation` goes to the language model's own `generate`, over the defaults of `llm.generation`.
        """
        if batch is None:
            if input_ids is None or attention_mask is None or media is None:
                raise TypeError("generate() takes a batch, or input_ids, attention_mask and media: see MacawProcessor")
            batch = Batch(input_ids, attention_mask, None, media, [], position_ids=position_ids)
        if batch.position_ids is not None:
            raise ConfigError("packed rows hold several samples and cannot be continued: collate with row_length=None")
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
            name = str(part.get("encoder"))
            if name not in encoders:
                raise ConfigError(f"modality {kind} wants the encoder {name!r}, not among {sorted(encoders)}")
            encoder = encoders[name]
            sequence = _frames(part.get("frames"), encoder)
            aligner = build_part(
                {**_section(config, "aligner"), **_section(config, "modalities", kind, "aligner")},
                Aligner,
                dim_in=encoder.dim,
                seq_len=encoder.seq_len * (sequence.frames if sequence else 1),
                dim_out=llm.dim,
            )
            modalities[kind] = Modality(name, aligner, sequence)
        return cls(encoders, modalities, llm, config)

    @property
    def device(self) -> torch.device:
        """Where the language model's embeddings are, and inputs should be."""
        return self.llm.table.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the language model's embeddings; inputs may have another."""
        return self.llm.table.dtype

    def parts(self) -> dict[str, nn.Module]:
        """What settings of training are given for: each encoder by its name, `aligners` with frames, and `llm`."""
        return {**dict(self.encoders.items()), "aligners": self.modalities, "llm": self.llm}

    def load_pretrained(self, sources: Mapping[str, str | None]) -> None:
        """Load weights by part: names of encoders, or `llm`, → file, folder or hub id; None leaves one as it is.

        What arrived, from where, and its SHA-256 is kept by part in `config["identities"]`, and so in the model folder.

        Raises:
            ConfigError: a name is no part of the model.
            WeightsError: weights of a part did not arrive.
        """
        parts: dict[str, Any] = {**self.encoders, "llm": self.llm}
        for name, source in sources.items():
            if name not in parts:
                raise ConfigError(f"pretrained.{name} names no part of the model: expected one of {sorted(parts)}")
            if source is not None:
                identities = self.config.setdefault("identities", {})
                identities[name] = parts[name].load_pretrained(source).identity()

    def _modalities(self) -> dict[str, Modality]:
        return dict(self.modalities.items())  # type: ignore[arg-type]  # nn.ModuleDict forgets its values' class

    def _encoder(self, name: str) -> Encoder:
        encoder = self.encoders[name]
        assert isinstance(encoder, Encoder)
        return encoder


def _as_in(part: nn.Module, values: Tensor) -> Tensor:
    """`values` in the precision of a part's weights: data are float32, and parts may differ, as a half LLM alone."""
    return values.to(next(part.parameters(), values).dtype)


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
            + did_you_mean(class_name, dir(sys.modules.get(module_name)), f"{module_name}.")
        )
    try:
        return part(**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # a misspelt name, a size of 0 or -1
        raise ConfigError(f"{class_name}: {in_one_line(error)}; see its arguments in {module_name}") from error


def _frames(config: Any, encoder: Encoder) -> FrameSequence | None:
    """A number of frames stands for `FramePositions`; a mapping names another sequence."""
    if config is None:
        return None
    part = config if isinstance(config, Mapping) else {"_target_": _FRAMES, "frames": config}
    return build_part(part, FrameSequence, dim=encoder.dim, seq_len=encoder.seq_len)


def _section(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = config
    for name in path:
        found = found.get(name)
        if not isinstance(found, Mapping):
            raise ConfigError(f"model.{'.'.join(path)} is {found!r}: expected a mapping, as in conf/model/")
    return found
