"""Whisper's audio encoder with its log-mel front end, by openai-whisper."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from whisper.audio import HOP_LENGTH, log_mel_spectrogram, pad_or_trim
from whisper.model import AudioEncoder, MultiHeadAttention

from macaw_lit.encoders.base import Encoder
from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.weights import load_exactly, read_weights, tensors_under

_FRAMES_PER_POSITION = 2  # the second convolution of the front end has stride 2


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
        n_mels: M, 80 or 128: openai-whisper ships filters for these two.
        n_ctx: S, positions of 20 ms each; Whisper's own is 1500, that is 30 s. A shorter one listens to less.
        width, layers, heads: size of the transformer; `width` is E.
    """

    medium = "audio"

    def __init__(self, n_mels: int = 80, n_ctx: int = 1500, width: int = 512, layers: int = 6, heads: int = 8) -> None:
        super().__init__()
        if n_mels not in {80, 128}:
            raise ConfigError(f"n_mels {n_mels}: Whisper's filters exist for 80 and 128 mel bins")
        if width % heads:
            raise ConfigError(f"Whisper width {width} is no multiple of heads {heads}: choose numbers that divide")
        self.encoder = AudioEncoder(n_mels, n_ctx, width, heads, layers)
        _mend(self.encoder)
        self.dim = width
        self.seq_len = n_ctx
        self.input_shape = (n_mels, n_ctx * _FRAMES_PER_POSITION)
        self.transform = LogMel(n_mels, n_ctx * _FRAMES_PER_POSITION)

    def forward(self, values: Float[Tensor, "n m f"]) -> Float[Tensor, "n s e"]:
        features: Tensor = self.encoder(values)
        return features

    def load_pretrained(self, source: str) -> None:
        """Load `encoder.*` of an OpenAI Whisper `.pt` file; the decoder is left where it is."""
        state = read_weights(Path(source)).get("model_state_dict")
        if not isinstance(state, dict):
            raise WeightsError(
                f"{source} has no model_state_dict: expected a Whisper .pt file as OpenAI publishes them"
            )
        load_exactly(self.encoder, tensors_under(state, "encoder."), f"encoder.* of {source}")


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
