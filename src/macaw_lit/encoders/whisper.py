"""Whisper's audio encoder with its log-mel front end, by openai-whisper."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, log_mel_spectrogram, pad_or_trim
from whisper.model import AudioEncoder, MultiHeadAttention

from macaw_lit.encoders.base import Encoder
from macaw_lit.encoders.whisper_checkpoints import read_whisper
from macaw_lit.errors import ConfigError
from macaw_lit.hub import locate
from macaw_lit.weights import Coverage, check_facts, load_exactly

_FRAMES_PER_POSITION = 2  # the second convolution of the front end has stride 2

SIZES = {  # n_mels, n_ctx, width, layers, heads of OpenAI's encoders
    "tiny": (80, 1500, 384, 4, 6),
    "base": (80, 1500, 512, 6, 8),
    "small": (80, 1500, 768, 12, 12),
    "medium": (80, 1500, 1024, 24, 16),
    "large-v1": (80, 1500, 1280, 32, 20),
    "large-v2": (80, 1500, 1280, 32, 20),
    "large-v3": (128, 1500, 1280, 32, 20),
    "turbo": (128, 1500, 1280, 32, 20),
}


class LogMel:
    """Waveform at 16 kHz → Whisper's log-mel spectrogram of a fixed length: cut, or padded with silence."""

    def __init__(self, n_mels: int, frames: int) -> None:
        self.n_mels, self.frames = n_mels, frames

    def __call__(self, samples: np.ndarray) -> Float[Tensor, "m f"]:
        waveform = pad_or_trim(torch.from_numpy(samples), self.frames * HOP_LENGTH)
        return log_mel_spectrogram(waveform, self.n_mels)


class WhisperEncoder(Encoder):
    """Whisper's encoder alone: no decoder is built, downloaded or kept.

    Args:
        size: one of OpenAI's, which fixes all of the following that are not given.
        n_mels: M, 80 or 128: openai-whisper ships filters for these two.
        n_ctx: S, positions of 20 ms each; Whisper's own is 1500, that is 30 s. A shorter one listens to less.
        width, layers, heads: size of the transformer; `width` is E.
        mlp_width: of its feed-forward layers; None is 4 × width, as every published Whisper has it.
    """

    medium = "audio"

    def __init__(
        self,
        size: str = "base",
        n_mels: int | None = None,
        n_ctx: int | None = None,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ConfigError(f"Whisper size {size!r}: expected one of {', '.join(SIZES)}")
        given = (n_mels, n_ctx, width, layers, heads)
        n_mels, n_ctx, width, layers, heads = (
            own if value is None else value for value, own in zip(given, SIZES[size], strict=True)
        )
        if n_mels not in {80, 128}:
            raise ConfigError(f"n_mels {n_mels}: Whisper's filters exist for 80 and 128 mel bins")
        if width % heads:
            raise ConfigError(f"Whisper width {width} is no multiple of heads {heads}: choose numbers that divide")
        self.encoder = AudioEncoder(n_mels, n_ctx, width, heads, layers)
        _mend(self.encoder)
        if mlp_width:
            for block in self.encoder.blocks:
                block.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))
        self.facts: dict[str, Any] = {
            "n_mels": n_mels,
            "n_ctx": n_ctx,
            "width": width,
            "layers": layers,
            "heads": heads,
        }
        self.facts |= {"activation": "gelu", "sampling_rate": SAMPLE_RATE, "hop_length": HOP_LENGTH, "n_fft": N_FFT}
        self.dim = width
        self.seq_len = n_ctx
        self.input_shape = (n_mels, n_ctx * _FRAMES_PER_POSITION)
        self.transform = LogMel(n_mels, n_ctx * _FRAMES_PER_POSITION)

    def forward(self, values: Float[Tensor, "n m f"]) -> Float[Tensor, "n s e"]:
        features: Tensor = self.encoder(values)
        return features

    def load_pretrained(self, source: str) -> Coverage:
        """Load a Whisper `.pt` file of OpenAI, or a folder or hub id of transformers' Whisper; the decoder is left out.

        Raises:
            WeightsError: a wanted weight did not arrive, one is unknown, or the source states other sizes or another
                front end than this encoder has.
        """
        state, left_out, stated = read_whisper(locate(source))
        checked = check_facts(stated, self.facts, source, "configure what it says")
        return load_exactly(self.encoder, state, source, left_out, checked)


class _Attention(MultiHeadAttention):
    """Whisper's attention without its view(-1), which is ambiguous for 0 items."""

    def qkv_attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (x.unflatten(2, (self.n_head, x.shape[2] // self.n_head)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2), None


def _mend(module: nn.Module) -> None:
    """Exchange the two parts of Whisper that fail here, in place and with the same parameters.

    Its LayerNorm multiplies fp32 activations with weights in their own type, which fails in 16 bit; its attention
    cannot take 0 items.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.LayerNorm):
            setattr(module, name, nn.LayerNorm(child.normalized_shape, eps=child.eps))
        elif isinstance(child, MultiHeadAttention):
            attention = _Attention(child.query.in_features, child.n_head)
            attention.load_state_dict(child.state_dict())
            setattr(module, name, attention)
        else:
            _mend(child)
