"""CLIP from the files of transformers and open_clip: the same features, and what they state is held to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from macaw_lit.encoders.clip import ClipEncoder
from macaw_lit.encoders.clip_checkpoints import open_clip_names
from macaw_lit.errors import WeightsError

SIZES = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "heads": 3, "output_dim": 12}
VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "projection_dim": 12,
    "initializer_factor": 20.0,  # weights large enough to see one that is missing or out of place
}
TEXT = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1}


def whole_clip(activation: str = "quick_gelu") -> CLIPModel:
    vision = VISION | {"hidden_act": activation}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=12)).eval()
    for name, parameter in model.vision_model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model


@pytest.fixture(scope="module")
def published() -> CLIPModel:
    torch.manual_seed(1)
    return whole_clip()


@pytest.fixture(scope="module")
def folder(published: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    published.save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def features(model: CLIPModel, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The three forms by transformers' own classes."""
    found = model.vision_model(values)
    hidden = found.last_hidden_state  # without the last norm, which transformers applies to the class token alone
    return {
        "tokens": model.vision_model.post_layernorm(hidden)[:, 1:],
        "projected": model.visual_projection(hidden)[:, 1:],
        "pooled": model.visual_projection(found.pooler_output)[:, None],
    }


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("form", ["tokens", "projected", "pooled"])
def test_features_are_those_of_transformers(form, activation, tmp_path):
    model, values = whole_clip(activation), torch.randn(3, 3, 32, 32)
    model.save_pretrained(tmp_path)
    encoder = ClipEncoder(**SIZES, form=form, quick_gelu=activation == "quick_gelu").eval()
    coverage = encoder.load_pretrained(str(tmp_path))
    expected = features(model, values)[form]
    assert expected.std() > 0.1
    # The bar of the project. Fused and separate queries, keys and values sum in another order: ulps of values to 10.
    torch.testing.assert_close(encoder(values), expected, rtol=1e-5, atol=1e-5)
    assert coverage.loaded == tuple(encoder.visual.state_dict())
    assert coverage.missing == coverage.unexpected == coverage.mismatched == ()
    unused = {"tokens": {"proj"}, "projected": {"ln_post.weight", "ln_post.bias"}, "pooled": set()}[form]
    text = {name for name in model.state_dict() if name.startswith(("text_", "logit_scale"))}
    assert set(coverage.left_out) == unused | text
    assert f"quick_gelu={activation == 'quick_gelu'}" in coverage.checked
    assert "heads=3" in coverage.checked


@pytest.mark.parametrize("kind", [CLIPVisionModel, CLIPVisionModelWithProjection])
def test_the_vision_tower_alone_loads_as_transformers_saves_it(published, folder, tmp_path, kind):
    kind.from_pretrained(folder).save_pretrained(tmp_path)
    form = "tokens" if kind is CLIPVisionModel else "projected"
    encoder, values = ClipEncoder(**SIZES, form=form).eval(), torch.randn(2, 3, 32, 32)
    encoder.load_pretrained(str(tmp_path))
    torch.testing.assert_close(encoder(values), features(published, values)[form], rtol=1e-5, atol=1e-5)
    if kind is CLIPVisionModel:
        with pytest.raises(WeightsError, match="1 missing: proj"):
            ClipEncoder(**SIZES, form="projected").load_pretrained(str(tmp_path))


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards", "file"])
def test_every_way_in_which_transformers_stores_weights(published, folder, tmp_path, form):
    published.save_pretrained(tmp_path, max_shard_size="20KB" if form == "shards" else "5GB")
    if form == "shards":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    if form == "bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    encoder, values = ClipEncoder(**SIZES, form="pooled").eval(), torch.randn(2, 3, 32, 32)
    encoder.load_pretrained(str(tmp_path / "model.safetensors" if form == "file" else tmp_path))
    torch.testing.assert_close(encoder(values), features(published, values)["pooled"], rtol=1e-5, atol=1e-5)


def test_the_constant_that_older_versions_stored_is_left_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    state = load_file(folder / "model.safetensors") | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file(state, tmp_path / "old" / "model.safetensors")
    coverage = ClipEncoder(**SIZES).load_pretrained(str(tmp_path / "old"))
    assert "vision_model.embeddings.position_ids" in coverage.left_out


def test_names_without_a_counterpart_stay_and_are_reported(folder):
    state = load_file(folder / "model.safetensors")
    tower = {name: tensor for name, tensor in state.items() if name.startswith("vision_model.")}
    del tower["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    tower["vision_model.head.weight"] = torch.ones(2)
    named = open_clip_names(tower)
    own = set(ClipEncoder(**SIZES).visual.state_dict())
    assert own - set(named) == {"transformer.resblocks.1.attn.in_proj_weight"}
    stray = {f"transformer.resblocks.1.self_attn.{name}_proj.weight" for name in "qv"}
    assert set(named) - own == stray | {"head.weight"}


def edited(folder: Path, target: Path, file: str, **changes: Any) -> str:
    """A copy of the folder in which a JSON file says something else; None takes a key away."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    for name, value in changes.items():
        inner, _, key = name.rpartition("__")
        place = content[inner] if inner else content
        place[key] = value
        if value is None:
            del place[key]
    (target / file).write_text(json.dumps(content))
    return str(target)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"vision_config__hidden_act": "gelu"}, "made with quick_gelu=False, .* with quick_gelu=True"),
        ("config.json", {"vision_config__hidden_act": "gelu_new"}, "made with quick_gelu=gelu_new"),
        ("config.json", {"vision_config__num_attention_heads": 4}, "made with heads=4, but is configured with heads=3"),
        ("config.json", {"vision_config__num_attention_heads": None}, "made with heads=12"),
        ("config.json", {"vision_config__layer_norm_eps": 1e-6}, "made with eps=1e-06, .* with eps=1e-05"),
        ("config.json", {"vision_config__image_size": 64}, "made with image_size=64"),
        ("config.json", {"vision_config": 3}, "JSON files in .* are not CLIP's"),
        ("config.json", {"model_type": "siglip"}, "says model_type 'siglip', expected clip.*encoder=hf_vision"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, r"mean=\(0.5, 0.5, 0.5\).*hf_vision fits any"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, 0.5]}, r"std=\(0.5, 0.5, 0.5\)"),
        ("preprocessor_config.json", {"image_std": "wide"}, "JSON files in .* are not CLIP's"),
        ("preprocessor_config.json", {"do_normalize": False}, "mean=None, std=None"),
        ("preprocessor_config.json", {"resample": 2}, "interpolation=bilinear"),
        ("preprocessor_config.json", {"do_center_crop": False}, "crop=None"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 40}}, "resize=40"),
        ("preprocessor_config.json", {"size": {"height": 32, "width": 32}}, "resize_mode=squash"),
        ("preprocessor_config.json", {"size": {"height": 32, "width": 48}}, "resize={'height': 32, 'width': 48}"),
    ],
)
def test_another_activation_or_preprocessing_is_refused(folder, tmp_path, file, changes, message):
    encoder = ClipEncoder(**SIZES)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        encoder.load_pretrained(edited(folder, tmp_path / "clip", file, **changes))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("preprocessor_config.json", {"size": 32, "crop_size": 32}),  # as transformers wrote it before 4.22
        ("preprocessor_config.json", {"image_mean": [0.481455, 0.457828, 0.408211]}),
        ("config.json", {"vision_config__hidden_act": None}),  # transformers' default
    ],
)
def test_the_same_said_in_other_words_is_accepted(folder, tmp_path, file, changes):
    ClipEncoder(**SIZES).load_pretrained(edited(folder, tmp_path / "clip", file, **changes))


def test_a_transformers_file_without_its_config_is_refused(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(WeightsError, match="says model_type None, expected clip: without it the activation is unknown"):
        ClipEncoder(**SIZES).load_pretrained(str(tmp_path / "model.safetensors"))


def test_a_hub_id_without_network_is_one_clear_line():
    with pytest.raises(
        WeightsError, match="openai/clip is neither a folder nor a hub id that can be reached"
    ) as caught:
        ClipEncoder(**SIZES).load_pretrained("openai/clip")
    assert "\n" not in str(caught.value)


OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"model_cfg": {**OPEN_CLIP["model_cfg"], "quick_gelu": False}}, "quick_gelu=False"),
        ({"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}, r"mean=\(0.5, 0.5, 0.5\)"),
        ({"preprocess_cfg": {"resize_mode": "squash"}}, "resize_mode=squash"),
    ],
)
def test_what_open_clip_writes_beside_its_weights_is_held_against_the_encoder(tmp_path, changes, message):
    text, vision = OPEN_CLIP["model_cfg"]["text_cfg"], OPEN_CLIP["model_cfg"]["vision_cfg"]
    model, values = CLIP(12, vision, text, quick_gelu=True).eval(), torch.randn(2, 3, 32, 32)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP | changes))
    encoder = ClipEncoder(**SIZES, form="pooled").eval()
    for source in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        if message:
            with pytest.raises(WeightsError, match=message):
                encoder.load_pretrained(str(source))
        else:
            coverage = encoder.load_pretrained(str(source))
            torch.testing.assert_close(encoder(values)[:, 0], model.encode_image(values))
            assert {"quick_gelu=True", "heads=3", "resize_mode=shortest"} <= set(coverage.checked)
    if not message:  # a file alone says nothing of what cannot be read off its tensors
        (tmp_path / "open_clip_config.json").unlink()
        assert encoder.load_pretrained(str(tmp_path)).checked == ()
