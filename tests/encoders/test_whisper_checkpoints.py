"""Whisper's encoder from folders of transformers: the same features, and nothing that contradicts what they state."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from macaw_lit.encoders.whisper import WhisperEncoder
from macaw_lit.errors import WeightsError

SIZES = {"n_mels": 80, "n_ctx": 12, "width": 24, "layers": 2, "heads": 3}
CONFIG = WhisperConfig(
    d_model=24,
    encoder_layers=2,
    encoder_attention_heads=3,
    encoder_ffn_dim=96,
    decoder_layers=1,
    decoder_attention_heads=3,
    decoder_ffn_dim=16,
    max_source_positions=12,
    vocab_size=30,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
    decoder_start_token_id=0,
    init_std=0.3,  # weights large enough to see one that is missing or out of place
)


@pytest.fixture(scope="module")
def published() -> WhisperForConditionalGeneration:
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration(CONFIG).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model


@pytest.fixture(scope="module")
def folder(published: WhisperForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper")
    published.save_pretrained(path)
    WhisperFeatureExtractor().save_pretrained(path)
    return path


@pytest.mark.parametrize("form", ["whole", "bare", "bin", "shards"])
def test_features_are_those_of_transformers(published, folder, tmp_path, form):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if form == "bare":  # saved without the head, and so without the prefix
        WhisperModel.from_pretrained(folder).save_pretrained(tmp_path)
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    if form == "shards":
        (tmp_path / "model.safetensors").unlink()
        published.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    encoder, values = WhisperEncoder(**SIZES).eval(), torch.randn(3, 80, 24)
    coverage = encoder.load_pretrained(str(tmp_path))
    expected = published.model.encoder(values).last_hidden_state
    assert expected.std() > 0.1
    # The bar of the project. transformers scales queries, OpenAI queries and keys: a few ulp of values up to 10.
    torch.testing.assert_close(encoder(values), expected, rtol=1e-5, atol=1e-5)
    assert coverage.loaded == tuple(encoder.encoder.state_dict())
    assert {name.partition(".")[0] for name in coverage.left_out} <= {"decoder", "proj_out"}
    assert {"n_mels=80", "heads=3", "activation=gelu", "sampling_rate=16000"} <= set(coverage.checked)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "config.json",
            "activation_function",
            "relu",
            "made with activation=relu, but is configured with activation=gelu",
        ),
        ("config.json", "encoder_attention_heads", 4, "made with heads=4"),
        (
            "config.json",
            "num_mel_bins",
            128,
            "made with n_mels=128, but is configured with n_mels=80: configure what it",
        ),
        ("config.json", "max_source_positions", 1500, "made with n_ctx=1500, but is configured with n_ctx=12"),
        ("config.json", "model_type", "hubert", "'hubert'.*encoder=hf_audio"),
        ("preprocessor_config.json", "hop_length", 320, "made with hop_length=320"),
    ],
)
def test_another_model_or_front_end_is_refused(folder, tmp_path, file, key, value, message):
    target = tmp_path / "whisper"
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | {key: value}))
    encoder = WhisperEncoder(**SIZES)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        encoder.load_pretrained(str(target))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_an_unknown_weight_is_not_passed_over(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = load_file(folder / "model.safetensors")
    for extra in ("model.encoder.layers.0.gate.weight", "model.adapter.weight"):
        save_file(state | {extra: torch.ones(2)}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match="1 unexpected: (blocks.0.gate.weight|adapter.weight)"):
            WhisperEncoder(**SIZES).load_pretrained(str(tmp_path))
