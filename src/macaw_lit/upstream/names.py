"""Names of weights: what a checkpoint of the original must hold, what in it is dead, and what each is called here."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from torch import Tensor

from macaw_lit.encoders.clip_checkpoints import open_clip_names
from macaw_lit.encoders.whisper_checkpoints import openai_names
from macaw_lit.errors import WeightsError
from macaw_lit.weights import tensors_under

Variant = Literal["v1", "v2", "v3"]
VARIANTS: tuple[Variant, ...] = ("v1", "v2", "v3")
KINDS = ("image", "audio", "video")
TABLE = "llm.model.embed_tokens.weight"
LONG = "video_long_self_attention"
_LISTED = 5  # names in a message

_DEAD = re.compile(
    r"logit_scale|layer_norm\.(weight|bias)"
    r"|(image|video)_encoder\.(logit_scale|text_model\..+|text_projection\.weight)"
    r"|(image|video)_encoder\.vision_model\.(embeddings\.position_ids|post_layernorm\.(weight|bias))"
    r"|audio_encoder\.decoder\..+|llm\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|project_video\.(weight|bias)|(image|audio)_align_attention\..+|temporal_.+|video_long_self_attention\..+"
)
"""What at least one version never uses in its forward pass; it is dead where `wanted` does not ask for it."""


def recognise(keys: Collection[str], asked: str) -> tuple[Variant, str]:
    """The version of a checkpoint, and the reason why.

    Args:
        keys: of the whole checkpoint.
        asked: a version, or `auto`.

    Raises:
        WeightsError: the version asked for cannot have these keys.
    """
    long = any(key.startswith(f"{LONG}.") for key in keys)
    if asked == "auto":
        if long:
            return "v3", f"{LONG}.* is there"
        return (
            "v1",
            f"no {LONG}.*, as in the released weights; v2 has the same names: say variant=v2 if it is one",
        )
    for variant in VARIANTS:
        if variant == asked:
            if variant == "v3" and not long:
                raise WeightsError(f"variant=v3, but the checkpoint lacks {LONG}.*: say variant=v1 or variant=v2")
            # Weights of v1 that the original's last code read and saved again have it too, never trained.
            return variant, "as you say" + (f", although {LONG}.* is there" if long and variant != "v3" else "")
    raise WeightsError(f"variant={asked}: expected auto, {', '.join(VARIANTS)}")


def wanted(variant: Variant, layers: Mapping[str, int]) -> set[str]:
    """Every name that a version's forward pass needs; `layers` are those of `vision`, `hearing` and `llm`."""
    both = ("weight", "bias")
    names = {f"project_{kind}.{each}" for kind in KINDS if kind != "video" or variant == "v3" for each in both}
    names |= {f"transform_{kind}_to_hidden.{each}" for kind in KINDS for each in both}
    attentions = [f"{kind}_align_attention" for kind in KINDS if kind == "video" or variant != "v1"]
    attentions.append(LONG if variant == "v3" else "temporal_self_attention")
    parts = ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "out_proj.weight", "out_proj.bias")
    names |= {f"{attention}.{part}" for attention in attentions for part in parts}
    names |= set() if variant == "v3" else {"temporal_position_embeddings.weight"}
    for kind in ("image", "video"):
        pooled = kind == "video" and variant != "v3"
        names |= {f"{kind}_encoder.{name}" for name in _vision(layers["vision"], pooled)}
    names |= {f"audio_encoder.encoder.{name}" for name in _hearing(layers["hearing"])}
    return names | {f"llm.{name}" for name in _llm(layers["llm"])}


def left_out(keys: Collection[str], needed: Collection[str]) -> list[str]:
    """The dead ones among `keys`, if the rest is exactly what is `needed`.

    Raises:
        WeightsError: names are missing or unknown; the message lists them.
    """
    dead = sorted(key for key in keys if key not in needed and _DEAD.fullmatch(key))
    faults = {"missing": sorted({*needed} - {*keys}), "unknown": sorted({*keys} - {*needed} - {*dead})}
    listed = "; ".join(
        f"{len(names)} {fault}: {', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''}"
        for fault, names in faults.items()
        if names
    )
    if listed:
        raise WeightsError(
            f"the checkpoint's names are not the original's ({listed}): fetch it again, or try another variant="
        )
    return dead


def our_names(state: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """The same weights under the names that `Macaw` has for them; `state` is emptied, so that nothing is held twice.

    The one alignment attention of v1 is copied to all three kinds and not shared: that is 2 × 67 M weights of 7.2 G at
    full size, no part of the model need know of it, and further training may tell the kinds apart, as v2 does.
    """
    named: dict[str, Tensor] = {}
    for ours, theirs in (("vision", "image_encoder."), ("film", "video_encoder.")):
        tower = open_clip_names(_take(state, theirs))
        named |= {f"encoders.{ours}.visual.{name}": tensor.contiguous() for name, tensor in tower.items()}
    hearing = openai_names(_take(state, "audio_encoder.encoder."))
    named |= {f"encoders.hearing.encoder.{name}": tensor for name, tensor in hearing.items()}
    named |= {f"llm.model.{name}": tensor for name, tensor in _take(state, "llm.").items()}
    shared = _take(state, "video_align_attention.") if variant == "v1" else {}
    for kind in KINDS:
        aligner = f"modalities.{kind}.aligner"
        own = _take(state, f"{kind}_align_attention.") or {name: tensor.clone() for name, tensor in shared.items()}
        named |= {f"{aligner}.attention.{name}": tensor for name, tensor in own.items()}
        for theirs, part in ((f"project_{kind}.", "conv"), (f"transform_{kind}_to_hidden.", "linear")):
            named |= {f"{aligner}.compress.{part}.{name}": tensor for name, tensor in _take(state, theirs).items()}
    for theirs in (f"{LONG}.", "temporal_self_attention."):
        named |= {f"modalities.video.frames.attention.{name}": tensor for name, tensor in _take(state, theirs).items()}
    for tensor in _take(state, "temporal_position_embeddings.").values():
        named["modalities.video.frames.position"] = tensor[:, None]
    assert not state, f"left behind: {sorted(state)}"
    return named


def _take(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    taken = tensors_under(state, prefix)
    for name in taken:
        del state[prefix + name]
    return taken


def _vision(layers: int, pooled: bool) -> Iterator[str]:
    inner = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")] + ["layer_norm1", "layer_norm2"]
    modules = [f"encoder.layers.{layer}.{name}" for layer in range(layers) for name in [*inner, "mlp.fc1", "mlp.fc2"]]
    modules += ["pre_layrnorm", *(["post_layernorm"] if pooled else [])]  # the misspelling is transformers' own
    yield from (f"vision_model.{module}.{part}" for module in modules for part in ("weight", "bias"))
    embeddings = ("class_embedding", "patch_embedding.weight", "position_embedding.weight")
    yield from (f"vision_model.embeddings.{name}" for name in embeddings)
    yield "visual_projection.weight"


def _hearing(layers: int) -> Iterator[str]:
    inner = [f"self_attn.{name}_proj" for name in ("q", "v", "out")]
    inner += ["self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"]
    modules = [f"layers.{layer}.{name}" for layer in range(layers) for name in inner] + ["conv1", "conv2", "layer_norm"]
    yield from (f"{module}.{part}" for module in modules for part in ("weight", "bias"))
    yield from (f"layers.{layer}.self_attn.k_proj.weight" for layer in range(layers))
    yield "embed_positions.weight"


def _llm(layers: int) -> Iterator[str]:
    inner = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    inner += ["input_layernorm", "post_attention_layernorm"]
    yield from (f"model.layers.{layer}.{name}.weight" for layer in range(layers) for name in inner)
    yield from ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
