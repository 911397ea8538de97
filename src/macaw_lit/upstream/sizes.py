"""The original's config.json → the sizes of a `Macaw` that computes the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from macaw_lit.errors import WeightsError
from macaw_lit.upstream.names import KINDS, TABLE, Variant
from macaw_lit.weights import read_facts

TAGS = (*(tag for kind in KINDS for tag in (f"<{kind}>", f"</{kind}>")), "[PAD]")
"""The last rows of the original's embedding table, in this order."""

DROPOUT = 0.1  # on the weights of all its own attentions, a literal of the original
_LITERAL_CONVS = {"image": (48, 36), "audio": (240, 220)}  # before v3 kernels and strides were not in config.json


class Heads(NamedTuple):
    """Heads of the alignment attentions and of the attention across frames; shapes of weights do not tell them."""

    align: int
    frames: int


class Facts:
    """The original's config.json.

    Raises:
        WeightsError: the folder has none, or it is another model's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        if not self.path.is_file():
            raise WeightsError(f"{folder} is no checkpoint: expected config.json and pytorch_model*.bin or safetensors")
        self.content = read_facts(self.path)
        if not isinstance(self.content.get("llm_config"), dict):
            raise WeightsError(
                f"{self.path} is no original Macaw-LLM's: expected llm_config, image_config and audio_config"
            )

    def get(self, *names: str, default: Any = None) -> Any:
        """The value at the end of a way of names.

        Raises:
            WeightsError: there is none, and no default.
        """
        found: Any = self.content
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            found = default
        if found is None:
            raise WeightsError(f"{self.path} lacks {'.'.join(names)}: it must be the config.json of these weights")
        return found

    def size(self, *names: str, default: int | None = None) -> int:
        """A positive number.

        Raises:
            WeightsError: it is something else.
        """
        value = self.get(*names, default=default)
        if not isinstance(value, int) or value < 1:
            raise WeightsError(f"{self.path} says {'.'.join(names)} = {value!r}: expected a positive whole number")
        return value

    def expect(self, *names: str, among: tuple[Any, ...]) -> Any:
        """A value that this package can compute with.

        Raises:
            WeightsError: it is not among those.
        """
        value = self.get(*names)
        if value not in among:
            raise WeightsError(
                f"{self.path} says {'.'.join(names)} = {value!r}: expected {' or '.join(map(repr, among))}"
            )
        return value

    def layers(self) -> dict[str, int]:
        """Layers of each tower, by the names of `names.wanted`."""
        return {
            "vision": self.size("image_config", "vision_config", "num_hidden_layers"),
            "hearing": self.size("audio_config", "encoder_layers"),
            "llm": self.size("llm_config", "num_hidden_layers"),
        }


def heads_of(facts: Facts, variant: Variant, asked: int | None) -> Heads:
    """Heads as asked for, or as the original makes them from its `attention_heads`: v3 aligns with twice as many.

    Raises:
        WeightsError: v3 cannot have an odd number of them.
    """
    factor = 2 if variant == "v3" else 1
    if asked is None and "attention_heads" not in facts.content:
        raise WeightsError(
            f"{facts.path} lacks attention_heads, and weights do not tell them: say heads=<heads of the alignment>, "
            f"which are {8 * factor} in {variant} as the original sets it"
        )
    if asked is None:
        frames = facts.size("attention_heads")
        return Heads(factor * frames, frames)
    if asked < 1 or asked % factor:
        raise WeightsError(
            f"heads={asked}: {variant} aligns with {factor} × attention_heads; give a multiple of {factor}"
        )
    return Heads(asked, asked // factor)


def sizes(
    facts: Facts, variant: Variant, heads: Heads, shapes: Mapping[str, tuple[int, ...]], tokenizer: str
) -> dict[str, Any]:
    """What `Macaw.from_config` needs. The two CLIP towers were trained apart and stay two: `vision` and `film`.

    Args:
        shapes: of the weights, by the original's names.
        tokenizer: its folder.

    Raises:
        WeightsError: config.json and weights contradict each other, or say what this package cannot compute.
    """
    long = variant == "v3"
    aligners: dict[str, dict[str, Any]] = {kind: _conv(facts, kind, variant, shapes) for kind in KINDS}
    frames = {
        "_target_": "macaw_lit.encoders.frames.FrameAttention",
        "frames": facts.size("n_frames"),
        "heads": heads.frames,
        "positions": "sinusoid" if long else "learned",
        "dropout": DROPOUT,
    }
    return {
        "encoders": {
            "vision": _vision(facts, "projected"),
            "hearing": _hearing(facts),
            "film": _vision(facts, "projected" if long else "pooled"),
        },
        "aligner": {
            "_target_": "macaw_lit.aligners.macaw_mha.MacawMHAAligner",
            "heads": heads.align,
            "dropout": DROPOUT,
        },
        "modalities": {
            "image": {"encoder": "vision", "aligner": aligners["image"]},
            "audio": {"encoder": "hearing", "aligner": aligners["audio"]},
            "video": {"encoder": "film", "frames": frames, "aligner": aligners["video"]},
        },
        "llm": _llm(facts, shapes[TABLE][0], tokenizer),
    }


def _conv(facts: Facts, kind: str, variant: Variant, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if kind == "video" and variant != "v3":
        return {"kernel": None, "stride": None}
    literal = _LITERAL_CONVS.get(kind, (None, None)) if variant != "v3" else (None, None)
    kernel = facts.size(f"{kind}_conv_kernel", default=literal[0])
    stride = facts.size(f"{kind}_conv_stride", default=literal[1])
    found = shapes[f"project_{kind}.weight"][-1]
    if found != kernel:
        said = "says" if f"{kind}_conv_kernel" in facts.content else "does not say, and the original's is"
        raise WeightsError(
            f"project_{kind} has the kernel {found}, but {facts.path} {said} {kernel}: give the config.json of these "
            f"weights, with {kind}_conv_kernel and {kind}_conv_stride, which weights do not tell"
        )
    return {"kernel": kernel, "stride": stride}


def _vision(facts: Facts, form: str) -> dict[str, Any]:
    way = ("image_config", "vision_config")
    facts.expect(*way, "layer_norm_eps", among=(1e-5,))
    return {
        "_target_": "macaw_lit.encoders.clip.ClipEncoder",
        "image_size": facts.size(*way, "image_size"),
        "patch_size": facts.size(*way, "patch_size"),
        "width": facts.size(*way, "hidden_size"),
        "layers": facts.size(*way, "num_hidden_layers"),
        "heads": facts.size(*way, "num_attention_heads"),
        "mlp_width": facts.size(*way, "intermediate_size"),
        "output_dim": facts.size("image_config", "projection_dim"),
        "form": form,
        "quick_gelu": facts.expect(*way, "hidden_act", among=("quick_gelu", "gelu")) == "quick_gelu",
    }


def _hearing(facts: Facts) -> dict[str, Any]:
    facts.expect("audio_config", "activation_function", among=("gelu",))
    return {
        "_target_": "macaw_lit.encoders.whisper.WhisperEncoder",
        "n_mels": facts.size("audio_config", "num_mel_bins"),
        "n_ctx": facts.size("audio_config", "max_source_positions"),
        "width": facts.size("audio_config", "d_model"),
        "layers": facts.size("audio_config", "encoder_layers"),
        "heads": facts.size("audio_config", "encoder_attention_heads"),
        "mlp_width": facts.size("audio_config", "encoder_ffn_dim"),
    }


def _llm(facts: Facts, rows: int, tokenizer: str) -> dict[str, Any]:
    said = facts.size("llm_config", "vocab_size")
    if said not in (rows, rows - len(TAGS)):  # before or after the original added the tags
        raise WeightsError(
            f"{TABLE} has {rows} rows, but {facts.path} says vocab_size {said}: "
            f"expected {said} or, with the tags and [PAD], {said + len(TAGS)} rows; these belong to different models"
        )
    config = {
        "model_type": facts.expect("llm_config", "model_type", among=("llama",)),
        "vocab_size": rows,
        "hidden_size": facts.size("llm_config", "hidden_size"),
        "intermediate_size": facts.size("llm_config", "intermediate_size"),
        "num_hidden_layers": facts.size("llm_config", "num_hidden_layers"),
        "num_attention_heads": facts.size("llm_config", "num_attention_heads"),
        "hidden_act": facts.get("llm_config", "hidden_act", default="silu"),
        "rms_norm_eps": facts.get("llm_config", "rms_norm_eps"),
        "max_position_embeddings": facts.size("llm_config", "max_position_embeddings", default=2048),
        "tie_word_embeddings": False,
    }
    return {"_target_": "macaw_lit.llms.hf.HFCausalLM", "tokenizer": tokenizer, "config": config}
