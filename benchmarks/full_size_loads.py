"""CLIP ViT-B/16 and Whisper-base at full size from every format: how far are our features from the other library's.

    python benchmarks/full_size_loads.py

Random weights are built by the library that publishes a format, with norms and biases that are not the identity, saved
by it, and loaded by us; no download. Prints a Markdown table: the largest difference of any feature, in float32, from
what that library itself computes for the same two inputs; how large features are; and the coverage of the load.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from open_clip import create_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    HubertConfig,
    HubertModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.utils import logging
from whisper.model import ModelDimensions, Whisper

from macaw_lit.encoders.base import Encoder
from macaw_lit.encoders.clip import ClipEncoder
from macaw_lit.encoders.hf_audio import HFAudioEncoder
from macaw_lit.encoders.hf_vision import HFVisionEncoder
from macaw_lit.encoders.whisper import WhisperEncoder

Case = tuple[str, Encoder, str, Callable[[Tensor], Tensor]]
"""Format, our encoder, what it is to load, and the other library's features."""


def randomised(module: Any) -> Any:
    """As if trained: fresh norms are the identity and fresh biases zero, which would hide two that are exchanged."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.1)
    return module.eval()


def clip_cases(folder: Path) -> list[Case]:
    """open_clip's three kinds of file, and transformers' folder, in one and in many files; each in a form."""
    model = randomised(create_model("ViT-B-16-quickgelu"))
    state = model.state_dict()
    save_file(state, folder / "clip.safetensors")
    torch.save(state, folder / "clip.pt")
    torch.save(state, folder / "clip.bin")

    def projected(values: Tensor) -> Tensor:
        hidden = model.visual.transformer(model.visual._embeds(values))
        return (hidden @ model.visual.proj)[:, 1:]

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    theirs = randomised(CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, patch_size=16, projection_dim=512)))
    for name, size in (("clip", "5GB"), ("clip-shards", "50MB")):
        theirs.save_pretrained(folder / name, max_shard_size=size)
        CLIPImageProcessor().save_pretrained(folder / name)

    def pooled(values: Tensor) -> Tensor:
        return theirs(values).image_embeds[:, None]

    def projected_too(values: Tensor) -> Tensor:
        return theirs.visual_projection(theirs.vision_model(values).last_hidden_state)[:, 1:]

    return [
        *(
            (f"open_clip {suffix}, projected", ClipEncoder(form="projected"), f"clip.{suffix}", projected)
            for suffix in ("safetensors", "pt", "bin")
        ),
        ("open_clip, pooled", ClipEncoder(form="pooled"), "clip.pt", lambda x: model.encode_image(x)[:, None]),
        ("transformers folder, projected", ClipEncoder(form="projected"), "clip", projected_too),
        ("transformers shards, pooled", ClipEncoder(form="pooled"), "clip-shards", pooled),
    ]


def whisper_cases(folder: Path) -> list[Case]:
    """OpenAI's file and transformers' folder."""
    sizes = ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
    model = randomised(Whisper(sizes))
    torch.save({"dims": sizes.__dict__, "model_state_dict": model.state_dict()}, folder / "base.pt")
    config = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    config |= {"decoder_layers": 6, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048}
    theirs = randomised(WhisperModel(WhisperConfig(**config)))
    theirs.save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    return [
        ("OpenAI pt", WhisperEncoder("base"), "base.pt", model.encoder),
        ("transformers folder", WhisperEncoder("base"), "whisper", lambda x: theirs.encoder(x).last_hidden_state),
    ]


def other_cases(folder: Path) -> list[Case]:
    """One vision and one audio encoder of transformers' own."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = randomised(SiglipVisionModel(SiglipVisionConfig(**sizes)))
    vision.save_pretrained(folder / "siglip")
    SiglipImageProcessor().save_pretrained(folder / "siglip")
    audio = randomised(HubertModel(HubertConfig()))
    audio.save_pretrained(folder / "hubert")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / "hubert")
    siglip = HFVisionEncoder(str(folder / "siglip"))
    hubert = HFAudioEncoder(str(folder / "hubert"), seconds=4)
    return [
        ("transformers folder", siglip, "siglip", lambda x: vision(x).last_hidden_state),
        ("transformers folder", hubert, "hubert", lambda x: audio(x).last_hidden_state),
    ]


@torch.no_grad()
def measured(case: Case, folder: Path) -> str:
    """One row of the table."""
    form, encoder, source, theirs = case
    values = torch.randn(2, *encoder.input_shape)
    before = encoder.eval()(values)
    coverage = encoder.load_pretrained(str(folder / source))
    ours, wanted = encoder(values), theirs(values)
    far = (before - wanted).abs().max()
    assert far > 1e-2, "before loading it should be far away"
    difference = f"{float((ours - wanted).abs().max()):.1e} | {float(wanted.abs().max()):.1f}"
    counts = f"{len(coverage.loaded)} | {len(coverage.left_out)} | {len(coverage.checked)}"
    return f"| {type(encoder).__name__} | {form} | {[*ours.shape[1:]]} | {difference} | {counts} |"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    torch.manual_seed(0)
    logging.disable_progress_bar()
    print(
        "| encoder | format | features of an item | largest difference | largest feature | loaded | left out | facts |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for cases in (clip_cases, whisper_cases, other_cases):
        with TemporaryDirectory() as folder:
            for case in cases(Path(folder)):
                print(measured(case, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
