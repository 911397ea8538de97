"""Vision encoders of transformers behind our seam: their features, their preprocessing, their files."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTForImageClassification,
)

from macaw_lit.cli import conf_dir
from macaw_lit.encoders.base import Encoder
from macaw_lit.encoders.hf_vision import HFVisionEncoder
from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.model import Macaw, build_part
from macaw_lit.weights import fingerprint

SIZES = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES |= {"image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SQUARE = {"height": 32, "width": 32}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": SQUARE}
KINDS = {  # model_type → image processor, positions before the patches
    "siglip_vision_model": (SiglipImageProcessor(size=SQUARE), 0),
    "clip_vision_model": (CLIPImageProcessor(**CROPPED), 1),
    "dinov2": (BitImageProcessor(**CROPPED), 1),
    "dinov2_with_registers": (BitImageProcessor(**CROPPED), 5),
    "vit": (SiglipImageProcessor(size=SQUARE), 1),
}


def published(kind: str) -> Any:
    """A model of transformers with weights large enough to see one that is missing."""
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    published(kind).save_pretrained(tmp_path / kind)
    KINDS[kind][0].save_pretrained(tmp_path / kind)
    return tmp_path / kind


def test_features_of_a_folder_are_those_of_transformers(kind, folder):
    encoder, values = HFVisionEncoder(str(folder)).eval(), torch.randn(3, 3, 32, 32)
    assert (encoder.seq_len, encoder.dim, encoder.input_shape) == (16, 24, (3, 32, 32))
    coverage = encoder.load_pretrained(str(folder))
    theirs = AutoModel.from_pretrained(folder).eval()(pixel_values=values).last_hidden_state
    assert torch.equal(encoder(values), theirs[:, KINDS[kind][1] :])  # the same class and operations: no tolerance
    assert theirs.std() > 0.1
    assert coverage.loaded == tuple(encoder.model.state_dict())
    assert {"hidden_act", "num_attention_heads", "image_size"} <= {fact.partition("=")[0] for fact in coverage.checked}
    assert {"image_mean", "size", "resample"} <= {fact.partition("=")[0] for fact in coverage.checked}


def test_all_that_is_trained_has_a_gradient_even_without_pictures(kind, folder):
    encoder = HFVisionEncoder(str(folder)).train()
    for n in (2, 0):
        encoder.zero_grad()
        features = encoder(torch.randn(n, 3, 32, 32))
        assert features.shape == (n, 16, 24)
        (features * torch.randn_like(features)).sum().backward()
        for name, parameter in encoder.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            # Softmax does not see what all keys have in common: their bias has a gradient of rounding errors at most.
            if parameter.requires_grad and not name.endswith(("k_proj.bias", "key.bias")):
                assert bool(parameter.grad.any()) == bool(n), name


def test_the_transform_is_the_image_processor(kind, folder):
    encoder = HFVisionEncoder(str(folder))
    pixels = np.random.default_rng(0).integers(0, 256, (57, 43, 3), np.uint8)
    expected = KINDS[kind][0](images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(copy.deepcopy(encoder.transform)(pixels), expected)


def test_what_is_saved_builds_the_same_without_the_folder(kind, folder):
    encoder = HFVisionEncoder(str(folder)).eval()
    arguments = json.loads(json.dumps(encoder.save_config()))
    shutil.rmtree(folder)
    again, values = HFVisionEncoder(**arguments).eval(), torch.randn(2, 3, 32, 32)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(values), encoder(values))
    pixels = np.random.default_rng(0).integers(0, 256, (57, 43, 3), np.uint8)
    assert torch.equal(again.transform(pixels), encoder.transform(pixels))
    assert again.save_config() == encoder.save_config()


@pytest.mark.parametrize(("whole", "config"), [(CLIPModel, CLIPConfig), (SiglipModel, SiglipConfig)])
def test_the_tower_of_a_whole_model_is_taken_out(tmp_path, whole, config):
    model, values = whole(config(vision_config=SIZES, text_config=TEXT)).eval(), torch.randn(2, 3, 32, 32)
    for parameter in model.vision_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    SiglipImageProcessor(size=SQUARE).save_pretrained(tmp_path)
    encoder = HFVisionEncoder(str(tmp_path)).eval()
    coverage = encoder.load_pretrained(str(tmp_path))
    expected = model.vision_model(values).last_hidden_state[:, -16:]
    torch.testing.assert_close(encoder(values), expected, rtol=1e-5, atol=1e-5)
    assert not any("text" in name for name in encoder.state_dict())
    assert {name for name in model.state_dict() if not name.startswith("vision_model.")} == set(coverage.left_out)


def test_a_classifier_is_left_out_and_a_pooler_it_lacks_is_not_missed(tmp_path):
    config = AutoConfig.for_model("vit", **SIZES)
    model, values = ViTForImageClassification(config).eval(), torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path)
    SiglipImageProcessor(size=SQUARE).save_pretrained(tmp_path)
    encoder = HFVisionEncoder(str(tmp_path)).eval()
    coverage = encoder.load_pretrained(str(tmp_path))
    assert torch.equal(encoder(values), model.vit(values).last_hidden_state[:, 1:])
    assert set(coverage.left_out) == {
        "classifier.weight",
        "classifier.bias",
        "pooler.dense.weight (neither there nor used)",
        "pooler.dense.bias (neither there nor used)",
    }
    assert coverage.sha256 == HFVisionEncoder(str(tmp_path)).load_pretrained(str(tmp_path)).sha256


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    published("siglip_vision_model").save_pretrained(tmp_path / "siglip")
    KINDS["siglip_vision_model"][0].save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "config.json",
            {"hidden_act": "gelu"},
            "made with hidden_act=gelu, but is configured with hidden_act=gelu_pytorch",
        ),
        ("config.json", {"num_attention_heads": 2}, "made with num_attention_heads=2"),
        ("preprocessor_config.json", {"image_mean": [0.1, 0.5, 0.5]}, r"image_mean=\[0.1, 0.5, 0.5\].*configure"),
        ("preprocessor_config.json", {"resample": 2}, "made with resample=2"),
    ],
)
def test_another_activation_or_preprocessing_is_refused(siglip, file, changes, message):
    encoder = HFVisionEncoder(str(siglip))
    before = copy.deepcopy(encoder.state_dict())
    edit(siglip / file, **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        encoder.load_pretrained(str(siglip))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(siglip):
    encoder = HFVisionEncoder(str(siglip))
    before = copy.deepcopy(encoder.state_dict())
    file = siglip / "model.safetensors"
    state = load_file(file)
    prefix = next(name for name in state if name.endswith("post_layernorm.bias")).removesuffix("post_layernorm.bias")
    for change, message in [
        ({f"{prefix}post_layernorm.bias": None}, "1 missing: post_layernorm.bias"),
        ({f"{prefix}encoder.gate": torch.ones(1)}, "1 unexpected: .*encoder.gate"),
        (
            {f"{prefix}post_layernorm.bias": torch.ones(5)},
            r"1 of another shape: .*post_layernorm.bias \[5\], wanted \[24\]",
        ),
    ]:
        changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=message):
            encoder.load_pretrained(str(siglip))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        encoder.load_pretrained(str(siglip))
    file.unlink()
    with pytest.raises(WeightsError, match="siglip holds no weights"):
        encoder.load_pretrained(str(siglip))
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_an_altered_file_and_code_in_the_folder_are_one_clear_line(siglip, tmp_path):
    encoder = HFVisionEncoder(str(siglip))
    file, state = siglip / "pytorch_model.bin", load_file(siglip / "model.safetensors")
    (siglip / "model.safetensors").unlink()
    torch.save(state, file)
    whole = bytearray(file.read_bytes())
    whole[whole.index(next(iter(state.values())).numpy().tobytes())] ^= 1
    file.write_bytes(whole)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is damaged \(the checksum of"):
        encoder.load_pretrained(str(siglip))
    torch.save(state, file)
    canary = tmp_path / "canary"
    (siglip / "foreign.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    edit(siglip / "config.json", model_type="foreign", auto_map={"AutoConfig": "foreign.C", "AutoModel": "foreign.M"})
    with pytest.raises(WeightsError, match="siglip cannot be loaded") as caught:
        encoder.load_pretrained(str(siglip))
    assert "\n" not in str(caught.value)
    assert not canary.exists()


SIGLIP = {"model_type": "siglip_vision_model", **SIZES}
PROCESSOR = {"image_processor_type": "SiglipImageProcessor", "size": SQUARE}


@pytest.mark.parametrize(
    ("config", "processor", "error", "message"),
    [
        (SIGLIP, None, ConfigError, "processor is missing"),
        (SIGLIP, {"size": SQUARE}, ConfigError, "image_processor_type None is none of transformers"),
        (SIGLIP, {"image_processor_type": "AutoModel"}, ConfigError, "image_processor_type 'AutoModel' is none"),
        (SIGLIP | {"model_type": "nonesuch"}, PROCESSOR, ConfigError, "nonesuch.*conf/encoder"),
        (SIZES, PROCESSOR, ConfigError, "model_type.*conf/encoder"),
        (
            SIGLIP,
            PROCESSOR | {"size": {"height": 40, "width": 40}},
            ConfigError,
            "cannot encode what its processor gives",
        ),
        ({"model_type": "convnext", "image_size": 32}, PROCESSOR, ConfigError, "features have shape .*not one vector"),
        ("/nowhere", None, WeightsError, "/nowhere not found"),
        ("owner/name", None, WeightsError, "owner/name is neither a folder nor a hub id that can be reached"),
    ],
)
def test_what_cannot_work_is_one_clear_line(config, processor, error, message):
    with pytest.raises(error, match=message) as caught:
        HFVisionEncoder(config, processor)
    assert "\n" not in str(caught.value)


def test_building_on_the_meta_device_costs_no_memory_and_knows_all():
    with torch.device("meta"):
        encoder = HFVisionEncoder(SIGLIP, PROCESSOR)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert (encoder.seq_len, encoder.dim) == (16, 24)
    assert encoder.transform(np.zeros((8, 8, 3), np.uint8)).device.type == "cpu"


def test_a_whole_model_with_it_is_saved_without_need_of_its_folder(siglip, sizes, make_batch, tmp_path):
    sizes["encoders"]["vision"] = {
        "_target_": "macaw_lit.encoders.hf_vision.HFVisionEncoder",
        "config": str(siglip),
    }
    model = Macaw.from_config(sizes).eval()
    model.load_pretrained({"vision": str(siglip)})
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(siglip)
    again = Macaw.from_pretrained(tmp_path / "model")
    batch = make_batch(model, [(1, {"image": 1}), (2, {"video": 1}), (3, {})])
    assert torch.equal(again(batch).nll, model(batch).nll)
    identity = again.config["identities"]["vision"]
    assert (identity["source"], identity["loaded"]) == ("siglip", len(again.encoders["vision"].model.state_dict()))
    assert identity["sha256"] == fingerprint(again.encoders["vision"].model.state_dict())
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


def test_the_config_that_is_shipped_builds():
    config = OmegaConf.to_container(OmegaConf.load(conf_dir() / "encoder" / "hf_vision.yaml"))
    with torch.device("meta"):
        encoder = build_part(config, Encoder)
    assert (encoder.seq_len, encoder.dim, encoder.input_shape) == (196, 768, (3, 224, 224))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_constants_that_meet_weights_are_cast_with_them(dtype):
    """Swin v2 multiplies a table of coordinates, a buffer that no state dict holds, by weights."""
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4}
    config = AutoConfig.for_model("swinv2", **sizes).to_dict()
    encoder = HFVisionEncoder(config, SiglipImageProcessor(size=SQUARE).to_dict()).to(dtype)
    assert encoder(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == dtype
