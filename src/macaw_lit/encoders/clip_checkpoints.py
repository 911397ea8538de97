"""CLIP's vision tower as open_clip and transformers store it: one set of names, and what the files say of it."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from macaw_lit.errors import WeightsError, in_one_line
from macaw_lit.weight_files import read_weights
from macaw_lit.weights import read_facts

_RENAMED = (  # transformers → open_clip
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),  # the misspelling is transformers' own
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_TEXT_TOWER = ("text_model.", "text_projection.", "logit_scale")
_BUFFER = "embeddings.position_ids"  # 0, 1, 2, …: stored by transformers before 4.31
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}


def read_clip(path: Path) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Read a checkpoint file or folder of open_clip, or a folder of transformers.

    Returns:
        the vision tower's weights by open_clip's names; the names of all that is not the vision tower; and the facts
        that the files state, by the names of `ClipEncoder.facts`.

    Raises:
        WeightsError: the files cannot be read, or hold another kind of model.
    """
    state = read_weights(path)
    folder = path if path.is_dir() else path.parent
    inner = state.get("state_dict")
    if isinstance(inner, dict):  # a training checkpoint of open_clip, with epoch and optimizer beside the weights
        state = {key.removeprefix("module."): value for key, value in inner.items()}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if any(key.startswith("visual.") for key in tensors):
        tower = {key.removeprefix("visual."): tensors[key] for key in tensors if key.startswith("visual.")}
        left_out = [key for key in tensors if not key.startswith("visual.")]
        return tower, left_out, _understood(_open_clip_facts, folder)
    if not any(key.removeprefix("vision_model.").startswith("embeddings.") for key in tensors):
        raise WeightsError(f"{path} holds no CLIP: expected visual.* of open_clip, or a folder of transformers' CLIP")
    left_out = [key for key in tensors if key.startswith(_TEXT_TOWER) or key.endswith(_BUFFER)]
    tower = open_clip_names({key: tensors[key] for key in tensors if key not in left_out})
    return tower, left_out, _understood(_transformers_facts, folder)


def open_clip_names(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' CLIP vision tower, with or without its `visual_projection`.

    open_clip has queries, keys and values in one matrix, and multiplies with the projection from the other side. A name
    that has no counterpart stays, and so do two of queries, keys and values if the third is missing.
    """
    named = {}
    for key, tensor in tower.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        named[key] = tensor
    if "visual_projection.weight" in named:
        named["proj"] = named.pop("visual_projection.weight").T
    for key in [key for key in named if ".self_attn.q_proj." in key]:
        three = [key.replace(".q_proj.", f".{name}_proj.") for name in "qkv"]
        if all(name in named for name in three):
            joint = key.replace(".self_attn.q_proj.", ".attn.in_proj_")
            named[joint] = torch.cat([named.pop(name) for name in three])
    return named


def _understood(facts: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    try:
        return facts(folder)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise WeightsError(f"the JSON files in {folder} are not CLIP's ({in_one_line(error)}): fetch them") from error


def _open_clip_facts(folder: Path) -> dict[str, Any]:
    """By open_clip's defaults where its file leaves something out; nothing if there is no such file."""
    facts = read_facts(folder / "open_clip_config.json")
    if not facts:
        return {}
    model, pictures = facts.get("model_cfg", {}), facts.get("preprocess_cfg", {})
    vision = model.get("vision_cfg", {})
    stated = {
        "quick_gelu": model.get("quick_gelu", False),
        "image_size": _side(vision.get("image_size", 224)),
        "heads": vision.get("width", 768) // vision.get("head_width", 64),
        "eps": (vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        "act_kwargs": vision.get("act_kwargs"),
        "pool_type": vision.get("pool_type", "tok"),
        "resize": _side(pictures.get("size", vision.get("image_size", 224))),
        "interpolation": pictures.get("interpolation", "bicubic"),
        "resize_mode": pictures.get("resize_mode", "shortest"),
    }
    return stated | {name: rounded(pictures[name]) for name in ("mean", "std") if name in pictures}


def _transformers_facts(folder: Path) -> dict[str, Any]:
    """By transformers' defaults where its files leave something out; they must say what model this is."""
    config = read_facts(folder / "config.json")
    kind = config.get("model_type")
    if kind not in {"clip", "clip_vision_model"}:
        raise WeightsError(
            f"{folder / 'config.json'} says model_type {kind!r}, expected clip: without it the activation is unknown; "
            "other models go through encoder=hf_vision"
        )
    vision = config.get("vision_config", {}) if kind == "clip" else config
    activation = vision.get("hidden_act", "quick_gelu")
    stated = {
        "quick_gelu": {"quick_gelu": True, "gelu": False}.get(activation, activation),
        "image_size": vision.get("image_size", 224),
        "heads": vision.get("num_attention_heads", 12),
        "eps": vision.get("layer_norm_eps", 1e-5),
    }
    pictures = read_facts(folder / "preprocessor_config.json")
    pictures = pictures or read_facts(folder / "processor_config.json").get("image_processor", {})
    if not pictures:
        return stated
    resample, size = pictures.get("resample", 3), pictures.get("size", 224)
    stated |= {
        "resize": _side(size) if pictures.get("do_resize", True) else None,
        "resize_mode": "squash" if isinstance(size, Mapping) and "shortest_edge" not in size else "shortest",
        "crop": _side(pictures.get("crop_size", 224)) if pictures.get("do_center_crop", True) else None,
        "interpolation": _INTERPOLATION.get(resample, resample),
    }
    for name, default in (("mean", OPENAI_DATASET_MEAN), ("std", OPENAI_DATASET_STD)):
        wanted = pictures.get("do_normalize", True)
        stated[name] = rounded(pictures.get(f"image_{name}", default)) if wanted else None
    return stated


def _side(size: Any) -> Any:
    """The side of a square: transformers has written it as a number, as the shortest edge, and as height and width."""
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return size["shortest_edge"]
    sides = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else size
    if isinstance(sides, list) and sides[:1] * 2 == sides:
        return sides[0]
    return size


def rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    """Means and deviations to four digits: some files have them with six, some with all."""
    return tuple(round(float(number), 4) for number in numbers)
