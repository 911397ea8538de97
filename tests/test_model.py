"""The whole model: soft tokens in their slots, one call per encoder, gradients for all, folders that come back."""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from macaw_lit.aligners.base import Aligner
from macaw_lit.encoders.base import Encoder
from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.llms.base import LLM
from macaw_lit.model import Macaw, Modality, build_part, delimiters
from macaw_lit.types import Batch

MIXED = [(1, {"image": 1}), (2, {}), (3, {"image": 2, "video": 1, "audio": 1}), (4, {"video": 2}), (5, {"audio": 2})]
TEXT = [(2, {}), (7, {})]
# Batched and single products may sum in another order: a few ulp of values up to 4.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_soft_tokens_land_in_their_slots_and_all_else_is_untouched(model, make_batch):
    batch = make_batch(model, MIXED)
    embeds = model.embed(batch)
    words = model.llm.embed(batch.input_ids)
    taken = torch.zeros_like(batch.attention_mask)
    for kind, modality in model.modalities.items():
        media = batch.media[kind]
        item = 0
        for row in range(len(MIXED)):
            places = media.slots[row].nonzero().flatten()
            for first in range(0, len(places), modality.aligner.num_tokens):
                values = media.values[item : item + 1]  # each item on its own, through parts called by hand
                pictures = values if modality.frames is None else values.flatten(0, 1)
                features = model.encoders[modality.encoder](pictures)
                features = features if modality.frames is None else modality.frames(features)
                tokens = modality.aligner(features, model.llm.table)[0]
                torch.testing.assert_close(embeds[row, places[first : first + len(tokens)]], tokens, **CLOSE)
                item += 1
        assert item == len(media.values)
        taken |= media.slots
    assert torch.equal(embeds[~taken], words[~taken])
    assert torch.equal(embeds[1], words[1]), "a row of text alone"


def test_slots_that_do_not_match_the_soft_tokens_are_refused_with_both_numbers(model, make_batch):
    batch = make_batch(model, MIXED)
    batch.media["image"].slots[0] = False
    with pytest.raises(ConfigError, match="8 image slots for 3 items of 4 soft tokens"):
        model(batch)


@pytest.mark.parametrize("rows", [MIXED, TEXT, MIXED[:1]])
def test_every_encoder_and_aligner_is_called_exactly_once(model, make_batch, rows):
    batch = make_batch(model, rows)
    calls = Counter()
    for name, module in model.named_modules():
        if isinstance(module, (Encoder, Aligner)):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: calls.update({name: 1, (name, len(inputs[0])): 0})
            )
    model(batch)
    parts = ["encoders.vision", "encoders.hearing", *(f"modalities.{kind}.aligner" for kind in batch.media)]
    assert {name: calls[name] for name in parts} == dict.fromkeys(parts, 1)
    pictures = len(batch.media["image"].values) + 2 * len(batch.media["video"].values)
    assert ("encoders.vision", pictures) in calls


def test_pictures_and_frames_together_are_as_each_apart(model, make_batch):
    batch = make_batch(model, MIXED)
    together = model.encode(batch.media)
    for kind in batch.media:
        alone = dict(make_batch(model, TEXT).media) | {kind: batch.media[kind]}
        torch.testing.assert_close(model.encode(alone)[kind], together[kind], **CLOSE)


def test_a_row_does_not_depend_on_the_others(model, make_batch):
    together = model(make_batch(model, MIXED))
    apart = [model(make_batch(model, [row])) for row in MIXED]
    assert int(together.tokens) == sum(int(output.tokens) for output in apart)
    # float32 sums over some twenty tokens
    assert together.nll.item() == pytest.approx(sum(output.nll.item() for output in apart), rel=1e-5)


def test_packed_rows_are_the_rows_one_by_one(model, make_batch):
    packed = make_batch(model, MIXED, row_length=40)
    assert packed.input_ids.shape[0] < len(MIXED)
    loss = model(packed).nll
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    alone = sum(model(make_batch(model, [row])).nll for row in MIXED)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)  # float32 sums in another order
    wanted = torch.autograd.grad(alone, list(model.parameters()), allow_unused=True)
    for (name, _), mine, theirs in zip(model.named_parameters(), gradients, wanted, strict=True):
        assert (mine is None) == (theirs is None), name
        if mine is not None:  # the same; norms are up to 60, and small ones are differences of large ones
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_packed_rows_are_not_continued(model, make_batch):
    batch = make_batch(model, TEXT, row_length=60)
    with pytest.raises(ConfigError, match="packed rows hold several samples and cannot be continued"):
        model.generate(batch)
    with pytest.raises(ConfigError, match="packed rows hold several samples and cannot be continued"):
        model.generate(**batch)


def test_answers_to_a_batch_are_the_answers_one_by_one(model, make_batch):
    model.eval()
    settings = {"max_new_tokens": 5, "do_sample": False}
    together = model.generate(make_batch(model, MIXED, "left"), **settings)
    for row, ids in zip(MIXED, together.tolist(), strict=True):
        alone = model.generate(make_batch(model, [row], "left"), **settings)[0].tolist()
        assert ids[: len(alone)] == alone
        assert set(ids[len(alone) :]) <= {model.llm.tokenizer.pad_token_id}


@pytest.mark.parametrize("aligner", ["macaw.MacawAligner", "macaw_mha.MacawMHAAligner", "perceiver.PerceiverAligner"])
@pytest.mark.parametrize("part", ["vision", "hearing", "aligners", "llm", "all"])
def test_parts_may_differ_in_precision(sizes, make_batch, aligner, part):
    sizes["aligner"] = {"_target_": f"macaw_lit.aligners.{aligner}"}
    frames = {"_target_": "macaw_lit.encoders.frames.FrameAttention", "frames": 2, "heads": 2}
    sizes["modalities"]["video"]["frames"] = frames
    model = Macaw.from_config(sizes).eval()
    batch = make_batch(model, MIXED)
    whole = model(batch).nll.item()
    (model if part == "all" else model.parts()[part]).to(torch.bfloat16)
    output = model(batch)
    output.nll.backward()
    # bfloat16 has 8 bits: a loss summed over some twenty tokens moves by a percent at most
    assert output.nll.item() == pytest.approx(whole, rel=1e-2)
    assert model.generate(make_batch(model, MIXED, "left"), max_new_tokens=2).shape == (len(MIXED), 2)


def test_media_change_the_answer_of_their_own_row_alone(model, make_batch):
    batch = make_batch(model, MIXED)
    before = model.embed(batch)
    for kind, row in (("image", 0), ("video", 3), ("audio", 4)):
        other = copy.deepcopy(batch)
        first = 0 if kind == "image" else 1  # the third row has a video and a sound as well
        other.media[kind].values[first] += 1
        changed = (model.embed(other) - before).abs().amax((1, 2)) > 1e-6
        assert changed.nonzero().flatten().tolist() == [row], kind


@pytest.mark.parametrize("rows", [MIXED, TEXT])
def test_all_trainable_weights_get_a_gradient_whatever_the_batch_holds(model, make_batch, rows):
    model(make_batch(model, rows)).nll.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            sees = rows is MIXED or name.startswith("llm.")
            idle = name.endswith("attn.key.bias")
            assert bool(parameter.grad.any()) == sees or idle, name


def test_everything_is_trained(model):
    assert all(parameter.requires_grad for parameter in model.parameters())
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"encoders", "modalities", "llm"}
    groups = {".".join(name.split(".")[:3]) for name, _ in model.named_parameters() if name.startswith("modalities")}
    assert groups == {
        *(f"modalities.{kind}.aligner" for kind in ("image", "video", "audio")),
        "modalities.video.frames",
    }


def test_specs_say_what_the_data_side_must_know(model):
    specs = model.specs()
    assert {kind: (spec.decoder, spec.num_tokens, spec.shape, spec.frames) for kind, spec in specs.items()} == {
        "image": ("image", 4, (3, 16, 16), None),
        "video": ("video", 3, (2, 3, 16, 16), 2),
        "audio": ("audio", 3, (80, 16), None),
    }
    assert specs["image"].transform is specs["video"].transform is model.encoders["vision"].transform


def test_a_model_can_be_laid_out_without_memory(sizes):
    with torch.device("meta"):
        blueprint = Macaw.from_config(sizes)
    assert all(parameter.is_meta for parameter in blueprint.parameters())
    assert blueprint.specs()["video"].num_tokens == 3


def test_delimiters_follow_from_the_kinds():
    assert delimiters({"image": 1, "depth": 2}) == ["<image>", "</image>", "<depth>", "</depth>"]


# ---- configs


def test_encoders_and_modalities_must_fit_each_other(sizes, model):
    with pytest.raises(ConfigError, match="modality image wants the encoder 'sight', not among .'hearing', 'vision'"):
        Macaw.from_config(merged(sizes, {"modalities": {"image": {"encoder": "sight"}}}))
    parts = dict(model.encoders.items()), {"image": Modality("vision", model.modalities["image"].aligner)}
    with pytest.raises(ConfigError, match=r"use the encoders \['vision'\], but the model has \['hearing', 'vision'\]"):
        Macaw(*parts, model.llm, sizes)


def merged(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A copy in which nested values are replaced; None removes a key."""
    result = dict(config)
    for key, value in change.items():
        if value is None:
            result.pop(key)
        else:
            result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


@pytest.mark.parametrize("base", [Encoder, Aligner, LLM])
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "torch.nn.Linear",
        "open_clip.transformer.VisionTransformer",
        "macaw_lit.encoders.clip.VisionTransformer",  # reached through a module of ours
        "macaw_lit.encoders.clip.zorder",
        "macaw_lit.encoders.clip.Path",
        "macaw_lit.encoders.clip",
        "macaw_lit.encoders.base.Encoder",
        "macaw_lit.aligners.base.Aligner",
        "macaw_lit.llms.base.LLM",
        "macaw_lit.nowhere.Encoder",
        "macaw_lit..Encoder",
        "macaw_litter.Encoder",
        "Encoder",
        "",
        None,
        7,
    ],
)
def test_only_parts_of_this_package_are_built(base, target):
    with pytest.raises(ConfigError):
        build_part({"_target_": target}, base)


def test_a_part_of_another_family_is_refused():
    with pytest.raises(ConfigError, match="ClipEncoder' is no Aligner of macaw_lit"):
        build_part({"_target_": "macaw_lit.encoders.clip.ClipEncoder"}, Aligner)


def test_arguments_that_a_part_does_not_take_are_named():
    with pytest.raises(ConfigError, match="WhisperEncoder.*n_mel.*see its arguments in macaw_lit.encoders.whisper"):
        build_part({"_target_": "macaw_lit.encoders.whisper.WhisperEncoder", "n_mel": 80}, Encoder)


# ---- weights by part


def test_pretrained_parts_are_loaded_by_name_and_null_leaves_one_alone(model, tmp_path):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.encoders["vision"].parameters():
            parameter.add_(1.0)
    state = other.encoders["vision"].visual.state_dict()
    save_file({f"visual.{name}": tensor for name, tensor in state.items()}, tmp_path / "clip.safetensors")
    hearing = copy.deepcopy(model.encoders["hearing"].state_dict())
    model.load_pretrained({"vision": str(tmp_path / "clip.safetensors"), "hearing": None, "llm": None})
    assert same(model.encoders["vision"].state_dict(), other.encoders["vision"].state_dict())
    assert same(model.encoders["hearing"].state_dict(), hearing)
    with pytest.raises(ConfigError, match=r"pretrained.sight names no part.*\['hearing', 'llm', 'vision'\]"):
        model.load_pretrained({"sight": None})


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- model folders


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("aligner", ["macaw.MacawAligner", "linear.LinearAligner"])
def test_a_model_folder_comes_back_to_the_bit(sizes, make_batch, tmp_path, tied, aligner):
    sizes["llm"]["config"] = {**sizes["llm"]["config"], "tie_word_embeddings": tied}
    sizes["aligner"] = {"_target_": f"macaw_lit.aligners.{aligner}"}
    model = Macaw.from_config(sizes).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "moved")
    torch.manual_seed(9)  # the new model is built from other random numbers
    again = Macaw.from_pretrained(tmp_path / "moved")
    assert same(again.state_dict(), model.state_dict())
    assert not again.training
    batch = make_batch(model, MIXED)
    assert torch.equal(again(batch).nll, model(batch).nll)
    head, table = again.llm.model.get_output_embeddings().weight, again.llm.table
    assert (head is table) == tied
    assert tied == ("llm.model.lm_head.weight" not in load_file(tmp_path / "moved" / "model.safetensors"))
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "moved" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_folder_can_be_read_in_another_precision(sizes, make_batch, tmp_path, tied):
    sizes["llm"]["config"] = {**sizes["llm"]["config"], "tie_word_embeddings": tied}
    model = Macaw.from_config(sizes).eval().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    wide = Macaw.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert (wide.dtype, wide.device) == (torch.float32, torch.device("cpu"))
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    assert {buffer.dtype for buffer in wide.buffers() if buffer.is_floating_point()} == {torch.float32}
    assert same(wide.to(torch.bfloat16).state_dict(), model.state_dict())
    narrow = Macaw.from_pretrained(tmp_path / "model", dtype=torch.float16)
    assert narrow.llm.table.dtype == torch.float16
    assert (narrow.llm.model.get_output_embeddings().weight is narrow.llm.table) == tied
    assert torch.isfinite(narrow(make_batch(narrow, MIXED)).nll)


def test_a_model_folder_says_nothing_of_where_it_was_made(model, tokenizer_folder, tmp_path):
    model.save_pretrained(tmp_path)
    text = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert str(tokenizer_folder) not in text
    assert str(tmp_path) not in text


@pytest.fixture
def folder(model: Macaw, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        Macaw.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path):
    assert "is no model folder" in refusal(tmp_path / "none")
    assert "is no model folder" in refusal(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "is no model folder" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": "other/1"}', b'{"format": "macaw-lit/1"}'],
)
def test_a_damaged_config_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"encoders": None},
        {"llm": None},
        {"llm": "llama"},
        {"aligner": []},
        {"modalities": None},
        {"modalities": {"image": {"encoder": None}}},
        {"modalities": {"image": {"aligner": None}}},
        {"modalities": {"image": "vision"}},
        {"encoders": {"vision": 3}},
        {"encoders": {"vision": {"width": "wide"}}},
        {"encoders": {"vision": {"heads": 0}}},
        {"encoders": {"hearing": {"width": -1}}},
        {"modalities": {"video": {"frames": "two"}}},
        {"modalities": {"video": {"frames": -2}}},
        {"llm": {"config": {"hidden_size": 33}}},
        {"llm": {"config": "/nowhere"}},
    ],
)
def test_a_config_with_a_hole_is_refused(folder, change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(merged(config, change)))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("target", ["os.system", "torch.nn.Linear", "macaw_lit.encoders.clip.zorder"])
@pytest.mark.parametrize("part", ["encoders", "aligner", "llm"])
def test_a_strangers_folder_cannot_choose_what_is_called(folder, tmp_path, part, target):
    canary = tmp_path / "canary"
    foreign = {"_target_": target, "command": f"mkdir {canary}"}
    config = json.loads((folder / "config.json").read_text())
    changed = merged(config, {part: {"vision": foreign} if part == "encoders" else foreign})
    (folder / "config.json").write_text(json.dumps(changed))
    assert repr(target) in refusal(folder)
    assert not canary.exists()


def edited(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        state = load_file(path)
        change(state)
        save_file(state, path)

    return edit


TABLE = "llm.model.model.embed_tokens.weight"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "holds no weights"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (edited(lambda state: state.pop("encoders.vision.visual.conv1.weight")), "missing: encoders.vision"),
        (edited(lambda state: state.pop(TABLE)), f"missing: .*{TABLE}"),
        (edited(lambda state: state.update(more=torch.ones(1))), "1 unexpected: more"),
        (edited(lambda state: state.update({TABLE: torch.ones(3, 32)})), rf"{TABLE} \[3, 32\], wanted"),
    ],
)
def test_damaged_weights_are_refused(sizes, tmp_path, tied, damage, message):
    sizes["llm"]["config"] = {**sizes["llm"]["config"], "tie_word_embeddings": tied}
    Macaw.from_config(sizes).save_pretrained(tmp_path)
    damage(tmp_path / "model.safetensors")
    found = refusal(tmp_path)
    assert "model.safetensors" in found
    assert re.search(message, found)


def test_a_folder_without_its_tokenizer_is_refused(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(folder)


def test_batches_move_with_all_their_tensors(model, make_batch):
    batch = make_batch(model, MIXED).to("meta")
    assert isinstance(batch, Batch)
    tensors = [batch.input_ids, batch.attention_mask, batch.labels]
    tensors += [tensor for media in batch.media.values() for tensor in (media.values, media.slots)]
    assert all(tensor.is_meta for tensor in tensors)
