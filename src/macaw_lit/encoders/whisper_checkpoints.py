"""Whisper's encoder as OpenAI and transformers store it: one set of names, and what the files say of themselves."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from macaw_lit.errors import WeightsError
from macaw_lit.weight_files import read_weights
from macaw_lit.weights import read_facts, tensors_under

_RENAMED = (  # transformers → OpenAI
    (r"^embed_positions\.weight$", "positional_embedding"),
    (r"^layers\.", "blocks."),
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.self_attn\.out_proj\.", ".attn.out."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"^layer_norm\.", "ln_post."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
)
_DECODER = ("decoder.", "proj_out.")
_OPENAI_FACTS = {
    "n_mels": "n_mels",
    "n_ctx": "n_audio_ctx",
    "width": "n_audio_state",
    "layers": "n_audio_layer",
    "heads": "n_audio_head",
}
_TRANSFORMERS_FACTS = {
    "n_mels": "num_mel_bins",
    "n_ctx": "max_source_positions",
    "width": "d_model",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "activation": "activation_function",
}


def read_whisper(path: Path) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Read a `.pt` file of OpenAI or a folder of transformers.

    Returns:
        the encoder's weights by OpenAI's names; the names of the decoder's; and the facts that the files state, by the
        names of `WhisperEncoder.facts`. A weight of neither stays under its whole name among the encoder's.

    Raises:
        WeightsError: the files cannot be read, or hold another kind of model.
    """
    state = read_weights(path)
    published = state.get("model_state_dict")
    if isinstance(published, dict):
        tensors, facts = tensors_under(published, ""), _openai_facts(state.get("dims"))
    else:
        facts = _transformers_facts(path)
        tensors = {key.removeprefix("model."): tensor for key, tensor in tensors_under(state, "").items()}
    left_out = [key for key in tensors if key.startswith(_DECODER)]
    encoder = {key.removeprefix("encoder."): tensors[key] for key in tensors if key not in left_out}
    return openai_names(encoder), left_out, facts


def openai_names(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' Whisper encoder; names that have no counterpart stay."""
    named = {}
    for key, tensor in encoder.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        named[key] = tensor
    return named


def _openai_facts(dims: object) -> dict[str, Any]:
    stated = dims if isinstance(dims, dict) else {}
    return {name: stated[key] for name, key in _OPENAI_FACTS.items() if key in stated}


def _transformers_facts(path: Path) -> dict[str, Any]:
    """What config and front end state; they must say that it is a Whisper."""
    folder = path if path.is_dir() else path.parent
    config = read_facts(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise WeightsError(
            f"{path} has no model_state_dict as OpenAI's .pt files, nor model_type whisper as transformers' folders "
            f"(but {config.get('model_type')!r}): give one of them; other models go through encoder=hf_audio"
        )
    stated = {name: config[key] for name, key in _TRANSFORMERS_FACTS.items() if key in config}
    front = read_facts(folder / "preprocessor_config.json")
    front = front or read_facts(folder / "processor_config.json").get("feature_extractor", {})
    return stated | {name: front[name] for name in ("sampling_rate", "hop_length", "n_fft") if name in front}
