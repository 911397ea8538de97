"""Audio encoders of transformers behind our seam: their features, their preprocessing, their files."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import (
    AutoConfig,
    AutoModel,
    HubertForCTC,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from macaw_lit.cli import conf_dir
from macaw_lit.encoders.base import Encoder
from macaw_lit.encoders.hf_audio import HFAudioEncoder
from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.model import build_part

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
SIZES |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
WHISPER = {"d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 48}
WHISPER |= {"decoder_layers": 1, "decoder_attention_heads": 3, "decoder_ffn_dim": 16, "max_source_positions": 50}
WHISPER |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
WHISPER |= {"vocab_size": 30}
RAW = Wav2Vec2FeatureExtractor(do_normalize=True)
MEL = WhisperFeatureExtractor(chunk_length=1)
KINDS = {"hubert": (SIZES, RAW), "wav2vec2": (SIZES, RAW), "wavlm": (SIZES, RAW), "whisper": (WHISPER, MEL)}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    sizes, extractor = KINDS[kind]
    model = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    model.save_pretrained(tmp_path / kind)
    extractor.save_pretrained(tmp_path / kind)
    return tmp_path / kind


def sound(samples: int = 9000) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)


def test_features_of_a_folder_are_those_of_transformers(kind, folder):
    encoder = HFAudioEncoder(str(folder), seconds=1).eval()
    coverage = encoder.load_pretrained(str(folder))
    values = torch.stack([encoder.transform(sound()), encoder.transform(sound(20_000))])
    assert values.shape[1:] == encoder.input_shape == ((80, 100) if kind == "whisper" else (16_000,))
    whole = AutoModel.from_pretrained(folder).eval()
    theirs = whole.get_encoder()(values) if kind == "whisper" else whole(values)
    assert torch.equal(encoder(values), theirs.last_hidden_state)  # the same class and operations: no tolerance
    assert encoder(values).shape[1:] == (encoder.seq_len, encoder.dim) == (50 if kind == "whisper" else 49, 24)
    assert coverage.loaded == tuple(encoder.model.state_dict())
    assert "sampling_rate=16000" in coverage.checked
    assert all(name.startswith("decoder.") for name in coverage.left_out)
    assert bool(coverage.left_out) == (kind == "whisper")


def test_all_that_is_trained_has_a_gradient_even_without_sounds(kind, folder):
    encoder = HFAudioEncoder(str(folder), seconds=1).train()
    for n in (2, 0, 2, 2):  # more than once: layers that chance leaves out would be seen
        encoder.zero_grad()
        features = encoder(torch.randn(n, *encoder.input_shape))
        assert features.shape == (n, encoder.seq_len, 24)
        (features * torch.randn_like(features)).sum().backward()
        for name, parameter in encoder.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            if parameter.requires_grad and not n:
                assert not parameter.grad.any(), name


def test_the_transform_is_the_feature_extractor_on_a_fixed_length(kind, folder):
    encoder, extractor = HFAudioEncoder(str(folder), seconds=1), KINDS[kind][1]
    name = extractor.model_input_names[0]
    for samples in (9_000, 20_000):
        length = {"padding": "max_length", "max_length": 16_000, "truncation": True}
        expected = extractor(sound(samples), sampling_rate=16_000, return_tensors="pt", **length)[name][0]
        assert torch.equal(copy.deepcopy(encoder.transform)(sound(samples)), expected)


def test_what_is_saved_builds_the_same_without_the_folder(kind, folder):
    encoder = HFAudioEncoder(str(folder), seconds=1).eval()
    arguments = json.loads(json.dumps(encoder.save_config()))
    shutil.rmtree(folder)
    again = HFAudioEncoder(**arguments, seconds=1).eval()
    again.load_state_dict(encoder.state_dict())
    values = again.transform(sound())[None]
    assert torch.equal(values[0], encoder.transform(sound()))
    assert torch.equal(again(values), encoder(values))


def test_a_head_is_left_out_and_a_mask_that_is_not_used_is_not_missed(tmp_path):
    model = HubertForCTC(AutoConfig.for_model("hubert", **SIZES, vocab_size=30)).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if "masked_spec_embed" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    RAW.save_pretrained(tmp_path)
    encoder = HFAudioEncoder(str(tmp_path), seconds=1).eval()
    coverage = encoder.load_pretrained(str(tmp_path))
    values = encoder.transform(sound())[None]
    assert torch.equal(encoder(values), model.hubert(values).last_hidden_state)
    assert set(coverage.left_out) == {"lm_head.weight", "lm_head.bias", "masked_spec_embed (neither there nor used)"}


HUBERT = {"model_type": "hubert", **SIZES}
PROCESSOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": HUBERT}, "processor is missing"),
        ({"config": HUBERT, "processor": {}}, "processor is missing"),
        ({"config": HUBERT, "processor": {"do_normalize": True}}, "feature_extractor_type None is none"),
        ({"config": HUBERT, "processor": PROCESSOR | {"sampling_rate": 8000}}, "wants 8000 Hz: sounds are decoded"),
        ({"config": HUBERT, "processor": PROCESSOR, "seconds": 0}, "seconds=0: expected the positive length"),
        ({"config": HUBERT, "processor": PROCESSOR, "seconds": 0.001}, "hubert cannot encode what its processor gives"),
        (
            {"config": {"model_type": "whisper", **WHISPER}, "processor": MEL.to_dict(), "seconds": 2},
            "whisper cannot encode what its processor gives.*length",
        ),
    ],
)
def test_what_cannot_work_is_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        HFAudioEncoder(**arguments)
    assert "\n" not in str(caught.value)


def test_another_architecture_or_front_end_is_refused(tmp_path):
    AutoModel.from_config(AutoConfig.for_model(**HUBERT)).save_pretrained(tmp_path)
    RAW.save_pretrained(tmp_path)
    other = HFAudioEncoder(HUBERT | {"feat_extract_norm": "layer"}, PROCESSOR, seconds=1)
    with pytest.raises(WeightsError, match="made with feat_extract_norm=group, but is configured with .*=layer"):
        other.load_pretrained(str(tmp_path))
    other = HFAudioEncoder(HUBERT, PROCESSOR | {"do_normalize": False}, seconds=1)
    with pytest.raises(WeightsError, match="made with do_normalize=True, but is configured with do_normalize=False"):
        other.load_pretrained(str(tmp_path))


def test_the_config_that_is_shipped_builds():
    config = OmegaConf.to_container(OmegaConf.load(conf_dir() / "encoder" / "hf_audio.yaml"))
    with torch.device("meta"):
        encoder = build_part(config, Encoder)
    assert (encoder.seq_len, encoder.dim, encoder.input_shape) == (1499, 768, (480_000,))
