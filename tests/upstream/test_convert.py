"""Imported models against the original's numbers, and against the reference at another size and in all formats."""

import copy
import json
from pathlib import Path

import pytest
import torch

from macaw_lit.inference import load_answerer
from macaw_lit.model import Macaw
from macaw_lit.types import MediaRef, Sample, Turn
from macaw_lit.upstream.convert import convert
from macaw_lit.upstream.names import left_out, our_names, wanted
from macaw_lit.upstream.sizes import Facts, heads_of, sizes

CASES = ("text", "image", "audio", "video", "video_audio", "image_video_audio", "train_style")
VERSIONS = ("v1", "v2", "v3")
KINDS = ("image", "audio", "video")
PARTS = ("kernel", "stride")


@pytest.fixture
def imported(source, tmp_path: Path):
    """The published checkpoint as one version, imported and read again; and what was said."""

    def run(variant: str, asked: str = "auto", **form) -> tuple[Macaw, list[str]]:
        said: list[str] = []
        convert(source(variant, **form), tmp_path / "target", asked, say=said.append)
        return Macaw.from_pretrained(tmp_path / "target"), said

    return run


@pytest.mark.parametrize("variant", VERSIONS)
def test_logits_are_the_originals(imported, variant, case, rows, printed):
    model, _ = imported(variant, variant)
    for each in CASES:
        batch = rows(model, *case(each))
        with torch.no_grad():
            told = model(batch).logits[batch.attention_mask][:, ::2]
        # The bar is 1e-4; logits have a spread of 1.2 and differ by at most 7e-6 in fp32.
        torch.testing.assert_close(told, printed[f"{variant}/{each}"], atol=5e-5, rtol=0, msg=f"{variant} {each}")


@pytest.mark.parametrize("variant", VERSIONS)
def test_generated_ids_are_the_originals(imported, variant, case, rows, printed):
    model, _ = imported(variant, variant)
    ids, mask, media = case("image_video_audio")
    batch = rows(model, ids[:1, :8], mask[:1, :8], {kind: values[:1] for kind, values in media.items()})
    expected = printed[f"{variant}/generate"].tolist()[1:]
    assert model.generate(batch, max_new_tokens=24).tolist() == [expected]


def other_config(config: dict) -> dict:
    """No size equal to another's, nor to the published one; GELU instead of QuickGELU; 128 mels."""
    config = copy.deepcopy(config)
    vision = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 3}
    config["image_config"]["vision_config"] |= {**vision, "image_size": 24, "patch_size": 6, "hidden_act": "gelu"}
    config["image_config"]["projection_dim"] = 40
    config["image_config"]["vision_config"]["projection_dim"] = 40
    hearing = {
        "d_model": 24,
        "encoder_ffn_dim": 56,
        "encoder_layers": 1,
        "num_hidden_layers": 1,
        "encoder_attention_heads": 2,
    }
    config["audio_config"] |= {**hearing, "num_mel_bins": 128, "max_source_positions": 30, "decoder_attention_heads": 2}
    llm = {"hidden_size": 80, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 5}
    config["llm_config"] |= {**llm, "vocab_size": 57, "rms_norm_eps": 1e-5}
    convs = {"image": (5, 3), "video": (11, 7), "audio": (9, 4)}
    for kind, (kernel, stride) in convs.items():
        config |= {f"{kind}_conv_kernel": kernel, f"{kind}_conv_stride": stride}
    return config | {"n_frames": 3, "attention_heads": 5, "hidden_size": 80}


def random_original(original, config: dict, variant: str):
    """Weights that matter: every norm, bias and extra key away from its trivial start, attentions far from uniform."""
    reference = original(config, variant).eval()
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            gain = 0.3 if weight.dim() < 2 or "bias_" in name else 1.5 * weight[0].numel() ** -0.5
            weight.copy_(gain * torch.randn(weight.shape) + ("norm" in name and "weight" in name))
        reference.llm.model.embed_tokens.weight.mul_(4)
    return reference


@pytest.mark.parametrize("variant", VERSIONS)
def test_another_size_is_the_references(original, version, write, rows, tmp_path, variant):
    config = other_config(version("v3")[0])
    reference = random_original(original, config, variant)
    source = write(tmp_path / "source", config, reference.state_dict(), form="safetensors", shards=2)
    convert(source, tmp_path / "target", variant, say=lambda line: None)
    model = Macaw.from_pretrained(tmp_path / "target")
    media = {
        "image": torch.randn(2, 3, 24, 24),
        "audio": torch.randn(2, 128, 60),
        "video": torch.randn(2, 3, 3, 24, 24),
    }
    ids, mask = torch.randint(3, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    ids[:, 0], mask[1, 6:] = 1, 0
    for kinds in ((), ("image",), ("audio",), ("video",), ("audio", "video"), KINDS):
        given = {kind: media[kind] for kind in kinds}
        batch = rows(model, ids, mask, given)
        with torch.no_grad():
            told = model(batch).logits
        expected = reference.logits(ids, mask, given)
        seen = batch.attention_mask
        torch.testing.assert_close(told[seen], expected[seen], atol=1e-4, rtol=0, msg=str(kinds))
    pair = {kind: values[:1] for kind, values in media.items()}
    other = {kind: values[1:] for kind, values in media.items()}
    for kind in KINDS:  # each medium is heard: with another of its kind the logits differ by more than the tolerance
        changed = reference.logits(ids[:1], mask[:1], {**pair, kind: other[kind]})
        assert (changed - reference.logits(ids[:1], mask[:1], pair)).abs().max() > 1e-2, kind


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("shards", [1, 3])
def test_formats_and_shards_give_the_same_weights(imported, version, form, shards):
    model, _ = imported("v3", form=form, shards=shards)
    _, state = version("v3")
    assert torch.equal(model.llm.table, state["llm.model.embed_tokens.weight"])
    attention = model.modalities["audio"].aligner.attention
    assert torch.equal(attention.bias_k, state["audio_align_attention.bias_k"])
    block = model.encoders["film"].visual.transformer.resblocks[1].attn
    parts = [state[f"video_encoder.vision_model.encoder.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(block.in_proj_weight, torch.cat(parts))


def test_buffers_and_dead_weights_may_be_absent(version, write, tmp_path):
    config, state = version("v3")
    dead = ("text_model", "decoder", "position_ids", "inv_freq", "temporal_", "logit_scale", "text_projection")
    lean = {name: tensor for name, tensor in state.items() if not any(part in name for part in dead)}
    assert len(lean) < len(state) - 50
    convert(write(tmp_path / "source", config, lean), tmp_path / "lean", say=lambda line: None)
    convert(write(tmp_path / "source", config, state), tmp_path / "full", say=lambda line: None)
    lean, full = (Macaw.from_pretrained(tmp_path / name).state_dict() for name in ("lean", "full"))
    assert lean.keys() == full.keys()
    assert all(torch.equal(lean[name], full[name]) for name in full)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_half_precision_is_kept_or_cast(version, write, tmp_path, dtype):
    config, state = version("v1")
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    convert(write(tmp_path / "source", config, halves), tmp_path / "target", dtype=dtype, say=lambda line: None)
    model = Macaw.from_pretrained(tmp_path / "target")
    expected = torch.float16 if dtype == "auto" else torch.float32
    assert {weight.dtype for weight in model.parameters()} == {expected}
    assert torch.equal(model.llm.table, halves["llm.model.embed_tokens.weight"].to(expected))


def test_v1_aligns_all_kinds_with_the_videos_attention_and_may_train_them_apart(imported, version):
    model, _ = imported("v1")
    weights = [model.modalities[kind].aligner.attention.in_proj_weight for kind in KINDS]
    assert all(torch.equal(weight, version("v1")[1]["video_align_attention.in_proj_weight"]) for weight in weights)
    assert len({weight.data_ptr() for weight in weights}) == 3


def test_what_was_found_is_said(imported):
    _, said = imported("v1")
    assert said[0].startswith("variant v1: no video_long_self_attention.*, as in the released weights; v2 has the same")
    assert said[1] == "heads: 4 in the alignment, 4 across frames, as config.json says attention_heads"
    assert "image_align_attention (16,768)" in said[3]
    for group in ("text_model", "audio_encoder.decoder", "logit_scale", "project_video", "audio_align_attention"):
        assert group in said[3]
    assert "temporal" not in said[3]


def test_v3_is_recognised_and_has_twice_the_heads(imported):
    _, said = imported("v3")
    assert said[0] == "variant v3: video_long_self_attention.* is there"
    assert said[1].startswith("heads: 8 in the alignment, 4 across frames")
    assert "temporal_self_attention" in said[3]


def test_heads_can_be_said_and_matter(source, tmp_path, case, rows):
    logits = []
    for heads in (None, 8, 2):
        target = tmp_path / f"target{heads}"
        convert(source("v3"), target, heads=heads, say=lambda line: None)
        model = Macaw.from_pretrained(target)
        with torch.no_grad():
            logits.append(model(rows(model, *case("video"))).logits)
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)


def test_literal_convolutions_before_v3(version, original, write, tmp_path):
    """Config files of v1 and v2 say nothing of convolutions; kernels and strides are literals of the original."""
    config = other_config(version("v3")[0])
    config["audio_config"]["max_source_positions"] = 500
    config["image_config"]["vision_config"] |= {"image_size": 64, "patch_size": 4}
    said = {"image": (48, 36), "audio": (240, 220), "video": (36, 30)}
    sizes = {
        f"{kind}_conv_{name}": value for kind, pair in said.items() for name, value in zip(PARTS, pair, strict=True)
    }
    state = original(config | sizes, "v1").state_dict()
    silent = {key: value for key, value in config.items() if "_conv_" not in key}
    convert(write(tmp_path / "source", silent, state), tmp_path / "target", say=lambda line: None)
    model = Macaw.from_pretrained(tmp_path / "target")
    assert {kind: spec.num_tokens for kind, spec in model.specs().items()} == {"image": 6, "audio": 2, "video": 3}


FULL_SIZE = {  # CLIP ViT-B/16, Whisper-base, LLaMA-7B with seven more tokens, and the original's own settings
    "image_config": {
        "projection_dim": 512,
        "text_config": {"vocab_size": 49408},
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 16,
            "layer_norm_eps": 1e-5,
            "hidden_act": "quick_gelu",
        },
    },
    "audio_config": {
        "d_model": 512,
        "encoder_layers": 6,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_layers": 6,
        "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048,
        "vocab_size": 51865,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
        "activation_function": "gelu",
    },
    "llm_config": {
        "model_type": "llama",
        "vocab_size": 32007,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "rms_norm_eps": 1e-6,
    },
    "image_conv_kernel": 48,
    "image_conv_stride": 36,
    "video_conv_kernel": 36,
    "video_conv_stride": 30,
    "audio_conv_kernel": 240,
    "audio_conv_stride": 220,
    "n_frames": 6,
    "attention_heads": 8,
}


@pytest.mark.parametrize("variant", VERSIONS)
def test_full_size_by_names_and_shapes(original, llama_tokenizer, tmp_path, variant):
    """1378 parameters of 7405.1 M numbers in v3 were counted on the original's own classes."""
    with torch.device("meta"):
        state = original(FULL_SIZE, variant).state_dict()
    numbers = sum(tensor.numel() for tensor in state.values())
    if variant == "v3":
        assert (len(state), round(numbers / 1e6, 1)) == (1378, 7405.1)
    (tmp_path / "config.json").write_text(json.dumps(FULL_SIZE))
    facts = Facts(tmp_path)
    needed = wanted(variant, facts.layers())
    dead = left_out(state.keys(), needed)
    heads = heads_of(facts, variant, None)
    assert heads.align == (16 if variant == "v3" else 8)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = sizes(facts, variant, heads, shapes, str(llama_tokenizer(tmp_path / "tokenizer", 32000)))
    with torch.device("meta"):
        model = Macaw.from_config(config)
    tokens = {kind: spec.num_tokens for kind, spec in model.specs().items()}
    assert tokens == {"image": 5, "audio": 6, "video": 39 if variant == "v3" else 6}
    named = our_names({name: state[name] for name in needed}, variant)
    shapes = {name: tensor.shape for name, tensor in named.items()}
    assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}
    copies = 2 * sum(state[name].numel() for name in state if name.startswith("video_align")) if variant == "v1" else 0
    kept = sum(tensor.numel() for tensor in named.values())
    assert kept == numbers - sum(state[name].numel() for name in dead) + copies


def test_a_question_is_laid_out_and_answered_as_the_original_would(
    source, version, original, tmp_path, picture, monkeypatch
):
    convert(source("v1"), tmp_path / "target", say=lambda line: None)
    answerer = load_answerer(tmp_path / "target", max_new_tokens=8)
    sample = Sample((Turn("user", "What?", (MediaRef("image", picture(90)),)),), "x", "test")
    example = answerer.preprocess(sample, predict=True)
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nWhat?\n\n### Response:"
    )
    text = answerer.model.llm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    pads = {"image": 3, "audio": 5, "video": 2}
    blocks = [[121 + 2 * at, *[127] * pads[kind], 122 + 2 * at] for at, kind in enumerate(KINDS)]
    assert example.input_ids.tolist() == [1, *(number for block in blocks for number in block), *text]
    assert example.media["image"].any()
    assert not example.media["audio"].any()
    assert not example.media["video"].any()

    config, state = version("v1")
    reference = original(config, "v1").eval()
    reference.load_state_dict(state, strict=False)
    given = {kind: example.media[kind] for kind in KINDS}
    ids = reference.greedy(torch.tensor([[1, *text]]), given, 8)
    expected = answerer.model.llm.tokenizer.decode(ids[: ids.index(2)] if 2 in ids else ids, skip_special_tokens=True)
    assert answerer([sample]) == [expected.strip()]


def test_the_folder_keeps_the_originals_conventions(imported, tmp_path):
    model, _ = imported("v3")
    settings = json.loads((tmp_path / "target" / "preprocess.json").read_text())
    assert settings["order"] == list(KINDS)
    assert settings["missing"] == "zeros"
    assert settings["max_length"] == 256 + 5 + 7 + 5  # text, and the three blocks with their tags
    assert settings["prompt"]["answer"] == "\n "
    assert model.llm.generation["max_new_tokens"] == 128
    identity = model.config["identities"]["original"]
    assert identity["checked"] == ["variant=v3", "heads=8"]
    assert (identity["source"], identity["missing"], identity["left_out"] > 50) == ("source", 0, True)
    assert model.llm.tokenizer.pad_token_id == 127
