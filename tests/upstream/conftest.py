"""An independent reference: the original's three versions written out on torch's attention and transformers' towers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperModel,
)

from macaw_lit.model import Macaw
from macaw_lit.types import Batch, Media

FIXTURES = Path(__file__).parents[1] / "fixtures" / "upstream"
VARIANTS = ("v1", "v2", "v3")
LONG = "video_long_self_attention"
ORDER = ("image", "audio", "video")
CASES = {
    "text": (),
    "image": ("image",),
    "audio": ("audio",),
    "video": ("video",),
    "video_audio": ("audio", "video"),
    "image_video_audio": ORDER,
    "train_style": ORDER,
}


def attention(width: int, heads: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(width, heads, add_bias_kv=True, add_zero_attn=True)


class Original(nn.Module):
    """The original at any size, with its names of weights, dead ones included. Nothing of macaw_lit is in it."""

    def __init__(self, config: dict[str, Any], variant: str) -> None:
        super().__init__()
        clip, whisper = CLIPConfig(**config["image_config"]), WhisperConfig(**config["audio_config"])
        llama = LlamaConfig(**config["llm_config"])
        heads, frames, width = config["attention_heads"], config["n_frames"], clip.projection_dim
        self.variant, self.frames = variant, frames
        self.image_encoder, self.video_encoder = CLIPModel(clip), CLIPModel(clip)
        self.audio_encoder = WhisperModel(whisper)
        self.llm = LlamaForCausalLM(llama)
        self.logit_scale = nn.Parameter(torch.ones(()))
        self.layer_norm = nn.LayerNorm(width)
        self.temporal_position_embeddings = nn.Embedding(frames, width)
        self.temporal_self_attention = attention(width, heads)
        if variant == "v3":
            self.video_long_self_attention = attention(width, heads)
        for kind in ORDER:
            inner = whisper.d_model if kind == "audio" else width
            kernel, stride = config[f"{kind}_conv_kernel"], config[f"{kind}_conv_stride"]
            self.add_module(f"project_{kind}", nn.Conv1d(inner, inner, kernel, stride))
            self.add_module(f"transform_{kind}_to_hidden", nn.Linear(inner, llama.hidden_size))
            align = attention(llama.hidden_size, heads * 2 if variant == "v3" else heads)
            self.add_module(f"{kind}_align_attention", align)

    @property
    def table(self) -> Tensor:
        return self.llm.get_input_embeddings().weight

    def features(self, kind: str, values: Tensor) -> Tensor:
        if kind == "audio":
            return self.audio_encoder.encoder(values).last_hidden_state
        if kind == "image":
            return self.patches(self.image_encoder, values)
        if self.variant == "v3":
            patches = self.patches(self.video_encoder, values.flatten(0, 1))
            joined = patches.reshape(len(values), -1, patches.shape[-1])  # frame after frame
            return self.attend(self.video_long_self_attention, joined + sinusoid(*joined.shape[1:]))
        vision = self.video_encoder.vision_model
        pooled = vision.post_layernorm(vision(values.flatten(0, 1)).last_hidden_state[:, 0])
        pooled = self.video_encoder.visual_projection(pooled).view(len(values), self.frames, -1)
        return self.attend(self.temporal_self_attention, pooled + self.temporal_position_embeddings.weight)

    @staticmethod
    def patches(tower: CLIPModel, values: Tensor) -> Tensor:
        return tower.visual_projection(tower.vision_model(values).last_hidden_state)[:, 1:]

    @staticmethod
    def attend(layer: nn.MultiheadAttention, values: Tensor) -> Tensor:
        turned = values.transpose(0, 1)
        return layer(turned, turned, turned)[0].transpose(0, 1)

    def soft_tokens(self, kind: str, values: Tensor) -> Tensor:
        found = self.features(kind, values)
        if not (kind == "video" and self.variant != "v3"):
            found = self.get_submodule(f"project_{kind}")(found.transpose(1, 2)).transpose(1, 2)
        queries = self.get_submodule(f"transform_{kind}_to_hidden")(found).transpose(0, 1)
        shared = "video" if self.variant == "v1" else kind
        keys = self.table[:, None].repeat(1, len(values), 1)  # [V, N, D]
        return self.get_submodule(f"{shared}_align_attention")(queries, keys, keys)[0].transpose(0, 1)

    def embed(self, ids: Tensor, media: dict[str, Tensor]) -> Tensor:
        words = self.llm.get_input_embeddings()(ids)
        first = len(self.table) - 7  # the six tags and [PAD] are the last rows of the table
        blocks = []
        for kind, values in media.items():
            opening = first + 2 * ORDER.index(kind)
            tags = self.table[opening : opening + 2].expand(len(ids), 2, -1)
            blocks.append(torch.cat([tags[:, :1], self.soft_tokens(kind, values), tags[:, 1:]], 1))
        return torch.cat([words[:, :1], *blocks, words[:, 1:]], 1)

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor, media: dict[str, Tensor]) -> Tensor:
        embeds = self.embed(ids, media)
        blocks = torch.ones(len(ids), embeds.shape[1] - ids.shape[1], dtype=mask.dtype)
        return self.llm(inputs_embeds=embeds, attention_mask=torch.cat([blocks, mask], 1)).logits

    @torch.no_grad()
    def greedy(self, ids: Tensor, media: dict[str, Tensor], new: int) -> list[int]:
        embeds, found = self.embed(ids, media), []
        for _ in range(new):
            found.append(int(self.llm(inputs_embeds=embeds).logits[0, -1].argmax()))
            embeds = torch.cat([embeds, self.table[found[-1]].expand(1, 1, -1)], 1)
        return found


def sinusoid(length: int, width: int) -> Tensor:
    even = torch.arange(0, width, 2, dtype=torch.float64)
    angles = torch.arange(length)[:, None] * torch.exp(-even * 2 * torch.log(torch.tensor(10000.0)) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).float()


TAGS = ["<image>", "</image>", "<audio>", "</audio>", "<video>", "</video>", "[PAD]"]


def write_tokenizer(folder: Path, tokens: int) -> Path:
    """LLaMA's roles, and single characters up to `tokens` tokens in all."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(0x21 + index): 3 + index for index in range(tokens - 3)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def write_source(
    folder: Path,
    config: dict[str, Any],
    state: dict[str, Tensor],
    form: str = "bin",
    shards: int = 1,
) -> Path:
    """A checkpoint folder as the original's `save_pretrained` leaves it, with its tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, save = ("pytorch_model", torch.save) if form == "bin" else ("model", save_file)
    names = sorted(state)
    parts = [names[start::shards] for start in range(shards)]  # a layer's weights are spread over all shards
    files = [f"{stem}-{part:05}-of-{shards:05}.{form}" for part in range(1, shards + 1)]
    if shards == 1:
        files = [f"{stem}.{form}"]
    else:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, part in zip(files, parts, strict=True):
        save({name: state[name].contiguous() for name in part}, folder / file)
    return write_tokenizer(folder, len(state["llm.model.embed_tokens.weight"]) - len(TAGS))


def published() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights that the original's own classes wrote, v3."""
    return json.loads((FIXTURES / "config.json").read_text()), load_file(FIXTURES / "model.safetensors")


def as_version(variant: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, state = published()
    return config, {name: tensor for name, tensor in state.items() if variant == "v3" or not name.startswith(LONG)}


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    """Writes the published checkpoint as one of a version, in `tmp_path/source`."""

    def write(variant: str = "v3", **form: Any) -> Path:
        return write_source(tmp_path / "source", *as_version(variant), **form)

    return write


@pytest.fixture
def write() -> Callable[..., Path]:
    return write_source


@pytest.fixture
def llama_tokenizer() -> Callable[[Path, int], Path]:
    return write_tokenizer


@pytest.fixture
def version() -> Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]:
    return as_version


@pytest.fixture
def original() -> type[Original]:
    return Original


@pytest.fixture
def rows() -> Callable[..., Batch]:
    return lay_out


@pytest.fixture
def case() -> Callable[[str], tuple[Tensor, Tensor, dict[str, Tensor]]]:
    return case_inputs


@pytest.fixture(scope="session")
def printed() -> dict[str, Tensor]:
    """What the original's own classes gave: `<version>/<case>` logits where the mask is 1, every second column."""
    return load_file(FIXTURES / "logits.safetensors")


def lay_out(model: Macaw, ids: Tensor, mask: Tensor, media: dict[str, Tensor]) -> Batch:
    """Rows as the original lays them out: BOS, blocks of image, audio, video, text."""
    specs, rows = model.specs(), len(ids)
    blocks, slots = [], {}
    width = ids.shape[1] + sum(specs[kind].num_tokens + 2 for kind in media)
    start = 1
    for kind in ORDER:
        slots[kind] = torch.zeros(rows, width, dtype=torch.bool)
        if kind in media:
            count = specs[kind].num_tokens
            tokens = [f"<{kind}>", *["[PAD]"] * count, f"</{kind}>"]
            blocks.append(torch.tensor([model.llm.tokenizer.convert_tokens_to_ids(tokens)] * rows))
            slots[kind][:, start + 1 : start + 1 + count] = True
            start += count + 2
    whole = torch.cat([ids[:, :1], *blocks, ids[:, 1:]], 1)
    ones = torch.ones(rows, width - ids.shape[1], dtype=torch.bool)
    values = {kind: media.get(kind, torch.zeros(0, *specs[kind].shape)) for kind in ORDER}
    kinds = {kind: Media(values[kind], slots[kind]) for kind in ORDER}
    return Batch(whole, torch.cat([ones, mask.bool()], 1), None, kinds, [""] * rows)


def case_inputs(case: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Ids, mask and media of a published case; in `train_style` a row's absent media are zeros."""
    inputs = load_file(FIXTURES / "inputs.safetensors")
    media = {kind: inputs[f"{kind}s"].clone() for kind in CASES[case]}
    if case == "train_style":  # rows: text, picture, video with sound
        for kind, row in (("image", 1), ("audio", 2), ("video", 2)):
            for other in {0, 1, 2} - {row}:
                media[kind][other] = 0
    return inputs["input_ids"], inputs["attention_mask"], media
