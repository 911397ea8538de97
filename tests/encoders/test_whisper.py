"""Whisper's encoder against openai-whisper's own classes, front end and checkpoint files."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from whisper.audio import log_mel_spectrogram, pad_or_trim
from whisper.model import AudioEncoder, ModelDimensions, Whisper

from macaw_lit.encoders.whisper import LogMel, WhisperEncoder
from macaw_lit.errors import ConfigError, WeightsError

SIZES = {"n_mels": 80, "n_ctx": 12, "width": 24, "layers": 2, "heads": 3}
DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=12,
    n_audio_state=24,
    n_audio_head=3,
    n_audio_layer=2,
    n_vocab=30,
    n_text_ctx=8,
    n_text_state=8,
    n_text_head=1,
    n_text_layer=1,
)
# Whisper casts to float32 around LayerNorm and SDPA may take another kernel for another layout: a few ulp.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def reference() -> AudioEncoder:
    """Whisper's encoder itself, with norms that are not the identity and weights large enough to matter."""
    encoder = AudioEncoder(80, 12, 24, 3, 2).eval()
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.3)
            nn.init.normal_(module.bias, std=0.3)
    return encoder


def encoder_of(published: AudioEncoder) -> WhisperEncoder:
    encoder = WhisperEncoder(**SIZES).eval()
    encoder.encoder.load_state_dict(published.state_dict())
    return encoder


def test_features_and_gradients_are_whispers():
    published, values, weighting = reference(), torch.randn(3, 80, 24), torch.randn(3, 12, 24)
    encoder = encoder_of(published)
    assert (encoder.dim, encoder.seq_len, encoder.input_shape) == (24, 12, (80, 24))
    features = encoder(values)
    torch.testing.assert_close(features, published(values), **CLOSE)
    (features * weighting).sum().backward()
    (published(values) * weighting).sum().backward()
    for name, parameter in encoder.encoder.named_parameters():
        wanted = dict(published.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_runs_where_whispers_own_does_not(dtype):
    published, values = reference(), torch.randn(2, 80, 24)
    encoder = encoder_of(published)
    half = encoder.to(dtype)(values.to(dtype))
    assert half.dtype == dtype
    # bf16 keeps 8 bits: 2⁻⁸ of values up to 4, through a dozen operations.
    torch.testing.assert_close(half.float(), published(values), rtol=0, atol=0.2)
    with pytest.raises(RuntimeError, match="dtype"):  # the day this passes, the exchange of LayerNorm can go
        published.to(dtype)(values.to(dtype))


def test_no_sounds_give_no_features_and_zero_gradients():
    encoder = WhisperEncoder(**SIZES)
    features = encoder(torch.zeros(0, 80, 24))
    assert features.shape == (0, 12, 24)
    features.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("seconds", [0.05, 0.24, 1.0])
@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_is_whispers(seconds, n_mels):
    samples = np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    found = LogMel(n_mels, 24)(samples)
    assert found.shape == (n_mels, 24)
    assert torch.equal(found, log_mel_spectrogram(pad_or_trim(samples, 24 * 160), n_mels))


def test_log_mel_finds_a_tone_in_its_band():
    tone = np.sin(2 * np.pi * 1000 * np.arange(3840) / 16_000).astype(np.float32)
    loudest = LogMel(80, 24)(tone)[:, 4:20].mean(1).argmax().item()
    # Slaney's scale, as Whisper has it: linear below 1 kHz, 3 mels per 200 Hz; 1 kHz is mel 15 of 45.2 over 80 bands.
    assert abs(loudest - 80 * 15 / 45.2) < 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_mels": 64}, "n_mels 64.*80 and 128"), ({"heads": 5}, "width 24 is no multiple of heads 5")],
)
def test_sizes_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        WhisperEncoder(**SIZES | settings)


def test_whisper_base_has_its_number_of_weights():
    with torch.device("meta"):
        encoder = WhisperEncoder()
    assert (encoder.dim, encoder.seq_len, encoder.input_shape) == (512, 1500, (80, 3000))
    block = 4 * 512**2 + 3 * 512 + 8 * 512**2 + 5 * 512 + 4 * 512  # attention (keys have no bias), MLP, two norms
    trained = 6 * block + 3 * 80 * 512 + 512 + 3 * 512**2 + 512 + 2 * 512  # two convolutions, last norm
    assert sum(p.numel() for p in encoder.parameters()) == trained == 19_822_592
    assert sum(t.numel() for t in encoder.state_dict().values()) == trained + 1500 * 512  # fixed sinusoids


def test_a_whisper_file_loads(tmp_path):
    whole, values = Whisper(DIMENSIONS).eval(), torch.randn(2, 80, 24)
    torch.save({"dims": DIMENSIONS.__dict__, "model_state_dict": whole.state_dict()}, tmp_path / "tiny.pt")
    encoder = WhisperEncoder(**SIZES).eval()
    assert not torch.allclose(encoder(values), whole.encoder(values), atol=1e-2)
    coverage = encoder.load_pretrained(str(tmp_path / "tiny.pt"))
    torch.testing.assert_close(encoder(values), whole.encoder(values), **CLOSE)
    assert coverage.loaded == tuple(encoder.encoder.state_dict())
    assert set(coverage.left_out) == {name for name in whole.state_dict() if name.startswith("decoder.")}
    assert coverage.checked == ("n_mels=80", "n_ctx=12", "width=24", "layers=2", "heads=3")


# Counted in openai-whisper's own class, built from the dims that its published files state.
PUBLISHED = {"tiny": 7_632_384, "small": 87_002_112, "medium": 305_680_384, "large-v2": 634_864_640}
PUBLISHED |= {"large-v1": 634_864_640, "large-v3": 635_048_960, "turbo": 635_048_960}


@pytest.mark.parametrize("size", PUBLISHED)
def test_one_word_gives_a_published_size(size):
    with torch.device("meta"):
        encoder = WhisperEncoder(size)
    assert sum(p.numel() for p in encoder.parameters()) == PUBLISHED[size]
    assert encoder.input_shape == (128 if size in {"large-v3", "turbo"} else 80, 3000)
    assert encoder.dim // encoder.encoder.blocks[0].attn.n_head == 64


def test_what_is_given_beside_the_size_counts():
    encoder = WhisperEncoder("tiny", n_ctx=6, layers=1)
    assert (encoder.seq_len, encoder.dim, len(encoder.encoder.blocks)) == (6, 384, 1)
    with pytest.raises(ConfigError, match="Whisper size 'large': expected one of tiny, base, small.*large-v3"):
        WhisperEncoder("large")


def test_files_that_do_not_fit_are_refused_and_nothing_is_loaded(tmp_path):
    state = Whisper(DIMENSIONS).state_dict()
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"dims": DIMENSIONS.__dict__, "model_state_dict": state}, tmp_path / "tiny.pt")
    larger, deeper = SIZES | {"n_ctx": 16}, SIZES | {"layers": 3}
    unsaid = {"dims": {}, "model_state_dict": state}
    torch.save(unsaid, tmp_path / "unsaid.pt")
    torch.save(unsaid | {"model_state_dict": state | {"head.weight": torch.ones(2)}}, tmp_path / "more.pt")
    for sizes, file, message in [
        (SIZES, "bare.pt", "bare.pt has no model_state_dict"),
        (larger, "tiny.pt", "was made with n_ctx=12, but is configured with n_ctx=16: configure what it says"),
        (SIZES | {"heads": 4}, "tiny.pt", "was made with heads=3, but is configured with heads=4"),
        (SIZES | {"n_mels": 128}, "tiny.pt", "was made with n_mels=80, but is configured with n_mels=128"),
        (larger, "unsaid.pt", r"positional_embedding \[12, 24\], wanted \[16, 24\]"),
        (deeper, "unsaid.pt", r"missing: blocks\.2"),
        (SIZES, "more.pt", r"1 unexpected: head\.weight"),
    ]:
        encoder = WhisperEncoder(**sizes)
        before = copy.deepcopy(encoder.state_dict())
        with pytest.raises(WeightsError, match=message):
            encoder.load_pretrained(str(tmp_path / file))
        assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
