"""Muon and AdamW as one optimizer against the two apart, and the schedule against its formula."""

import copy
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn
from torch.optim import SGD, AdamW, Muon

from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw
from macaw_lit.training.optim import FULL_RATE_FAN_IN, MuonAdamW, adamw, cosine_with_warmup


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    return {own[id(parameter)] for parameter in parameters}


MATRICES = {
    "encoders.vision.visual.transformer.resblocks.0.attn.in_proj_weight",
    "encoders.vision.visual.transformer.resblocks.1.mlp.c_proj.weight",
    "encoders.hearing.encoder.blocks.0.attn.query.weight",
    "modalities.image.aligner.compress.linear.weight",
    "llm.model.model.layers.0.self_attn.q_proj.weight",
    "llm.model.model.layers.1.mlp.down_proj.weight",
}
OTHERS = {
    "encoders.vision.visual.class_embedding",
    "encoders.vision.visual.positional_embedding",
    "encoders.vision.visual.conv1.weight",
    "encoders.vision.visual.ln_post.weight",
    "encoders.hearing.encoder.conv2.weight",
    "encoders.hearing.encoder.blocks.0.attn.query.bias",
    "modalities.image.aligner.compress.conv.weight",
    "modalities.image.aligner.log_temperature",
    "modalities.video.frames.position",
    "llm.model.model.embed_tokens.weight",
    "llm.model.model.norm.weight",
    "llm.model.lm_head.weight",
}


Groups = list[dict[str, Any]]


def adamw_of(model: nn.Module) -> Groups:
    return adamw(model, lr=1e-3, weight_decay=0.1).param_groups


def muon_of(model: nn.Module) -> Groups:
    return MuonAdamW(model, lr=1e-2, adamw_lr=1e-3, weight_decay=0.1).param_groups


@pytest.mark.parametrize("groups_of", [adamw_of, muon_of])
def test_hidden_matrices_are_decayed_and_nothing_else_is(model: Macaw, groups_of: Callable[[nn.Module], Groups]):
    decayed, *plain = groups_of(model)
    matrices = names_of(model, decayed["params"])
    others = [name for group in plain for name in names_of(model, group["params"])]
    assert matrices >= MATRICES
    assert set(others) >= OTHERS
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted([*matrices, *others]) == sorted(trained), "each trainable weight in one group, no frozen one in any"
    assert [decayed["weight_decay"], *(group["weight_decay"] for group in plain)] == [0.1, *[0.0] * len(plain)]


def test_convolutions_of_many_inputs_learn_more_slowly(model: Macaw):
    matrices, *others = muon_of(model)
    assert matrices["lr"] == 1e-2
    rates = {name: group["lr"] for group in others for name in names_of(model, group["params"])}
    fan_in = {  # channels · kernel
        "encoders.vision.visual.conv1.weight": 3 * 4 * 4,
        "encoders.hearing.encoder.conv1.weight": 80 * 3,
        "encoders.hearing.encoder.conv2.weight": 24 * 3,
        "modalities.image.aligner.compress.conv.weight": 16 * 4,
        "modalities.video.aligner.compress.conv.weight": 16 * 16,
        "modalities.audio.aligner.compress.conv.weight": 24 * 4,
    }
    assert {name: rates.pop(name) for name in fan_in} == pytest.approx(
        {name: 1e-3 * min(1, FULL_RATE_FAN_IN / inputs) for name, inputs in fan_in.items()}
    )
    assert set(rates.values()) == {1e-3}


@pytest.fixture(scope="module")
def full_size(tokenizer_folder: Path) -> Macaw:
    """The paper's model, all names and shapes of it and no weights."""
    llama = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    }
    aligner = {"kernel": 48, "stride": 36}
    sizes = {
        "encoders": {
            "vision": {"_target_": "macaw_lit.encoders.clip.ClipEncoder", "form": "projected"},
            "hearing": {"_target_": "macaw_lit.encoders.whisper.WhisperEncoder", "size": "base"},
        },
        "aligner": {"_target_": "macaw_lit.aligners.macaw.MacawAligner"},
        "llm": {"_target_": "macaw_lit.llms.hf.HFCausalLM", "tokenizer": str(tokenizer_folder), "config": llama},
        "modalities": {
            "image": {"encoder": "vision", "aligner": aligner},
            "video": {"encoder": "vision", "frames": 6, "aligner": aligner},
            "audio": {"encoder": "hearing", "aligner": aligner},
        },
    }
    with init_empty_weights(include_buffers=False):
        return Macaw.from_config(sizes)


def test_of_real_clip_whisper_and_llama_exactly_the_layers_matrices_are_decayed(full_size):
    decayed, plain = adamw_of(full_size)
    block, attention, mlp = "encoders.vision.visual.transformer.resblocks.*.", "self_attn.{}_proj", "mlp.{}_proj"
    whisper, llama = "encoders.hearing.encoder.blocks.*.", "llm.model.model.layers.*."
    assert {re.sub(r"\.\d+\.", ".*.", name, count=1) for name in names_of(full_size, decayed["params"])} == {
        "encoders.vision.visual.proj",
        *(block + name for name in ("attn.in_proj_weight", "attn.out_proj.weight")),
        *(block + name for name in ("mlp.c_fc.weight", "mlp.c_proj.weight")),
        *(f"{whisper}attn.{name}.weight" for name in ("query", "key", "value", "out")),
        *(f"{whisper}mlp.{place}.weight" for place in (0, 2)),
        *(f"modalities.{kind}.aligner.compress.linear.weight" for kind in ("image", "video", "audio")),
        *(llama + attention.format(name) + ".weight" for name in "qkvo"),
        *(llama + mlp.format(name) + ".weight" for name in ("gate", "up", "down")),
    }
    count = sum(parameter.numel() for parameter in decayed["params"])
    linear = 12 * (4 + 8) * 768**2 + 768 * 512 + 6 * (4 + 8) * 512**2 + 3 * 512 * 4096
    assert count == linear + 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    left = names_of(full_size, plain["params"])
    shaped = {name for name in left if full_size.get_parameter(name).ndim > 1}
    assert {re.sub(r"(image|video|audio)", "*", name) for name in shaped} == {
        "encoders.vision.visual.positional_embedding",
        "encoders.vision.visual.conv1.weight",
        "encoders.hearing.encoder.conv1.weight",
        "encoders.hearing.encoder.conv2.weight",
        "modalities.*.aligner.compress.conv.weight",
        "modalities.*.frames.position",
        "llm.model.model.embed_tokens.weight",
        "llm.model.lm_head.weight",
    }, "beside these, norms, biases and the class token alone"


def test_parts_have_rates_of_their_own(model: Macaw):
    groups = adamw(model, lr=1e-3, weight_decay=0.1, part_lr={"llm": 1e-5, "aligners": 1e-2}).param_groups
    by_name = {
        group["name"]: (group["lr"], group["weight_decay"], names_of(model, group["params"])) for group in groups
    }
    assert {name: figures[:2] for name, figures in by_name.items()} == {
        "decayed": (1e-3, 0.1),
        "llm/decayed": (1e-5, 0.1),
        "aligners/decayed": (1e-2, 0.1),
        "plain": (1e-3, 0.0),
        "llm/plain": (1e-5, 0.0),
        "aligners/plain": (1e-2, 0.0),
    }
    for name, (_, _, names) in by_name.items():
        prefix = {"llm": "llm.", "aligners": "modalities."}.get(name.partition("/")[0], "encoders.")
        assert names
        assert all(own.startswith(prefix) for own in names), name
    plainly = adamw(model, lr=1e-3, weight_decay=0.1).param_groups
    whole = [{parameter for group in part for parameter in group["params"]} for part in (groups, plainly)]
    assert whole[0] == whole[1]


def test_both_rates_of_a_part_under_muon_are_in_proportion(model: Macaw):
    groups = MuonAdamW(model, lr=1e-2, adamw_lr=1e-3, weight_decay=0.1, part_lr={"llm": 2e-3}).param_groups
    rates = {name: (group["name"], group["lr"]) for group in groups for name in names_of(model, group["params"])}
    assert rates["llm.model.model.layers.0.self_attn.q_proj.weight"] == ("llm/muon", 2e-3)
    assert rates["llm.model.model.embed_tokens.weight"] == ("llm/adamw", pytest.approx(2e-4))
    assert rates["modalities.image.aligner.compress.linear.weight"] == ("muon", 1e-2)
    assert rates["encoders.vision.visual.ln_pre.weight"] == ("adamw", pytest.approx(1e-3))
    name, rate = rates["modalities.video.aligner.compress.conv.weight"]
    assert (name, rate) == ("adamw/fan_in_256", pytest.approx(1e-3 * FULL_RATE_FAN_IN / 256))
    names = [group["name"] for group in groups]
    assert len(names) == len(set(names)), "Lightning's LearningRateMonitor wants them to differ"


@pytest.mark.parametrize("optimizer", [adamw, partial(MuonAdamW, adamw_lr=1e-3)])
@pytest.mark.parametrize(
    ("part_lr", "message"),
    [
        ({"lm": 1e-5}, r"optim.part_lr.lm names no part.*\['aligners', 'hearing', 'llm', 'vision'\]"),
        ({"llm": 0.0}, "optim.part_lr.llm=0.0: expected a positive rate; model.adapt.llm=frozen"),
        ({"llm": -1e-5}, "optim.part_lr.llm=-1e-05"),
    ],
)
def test_rates_that_cannot_be_are_one_line(model, optimizer, part_lr, message):
    with pytest.raises(ConfigError, match=message):
        optimizer(model, lr=1e-3, weight_decay=0.0, part_lr=part_lr)


def test_a_tied_head_is_an_embedding(sizes):
    sizes["llm"]["config"] = {**sizes["llm"]["config"], "tie_word_embeddings": True}
    model = Macaw.from_config(sizes)
    matrices, *_ = muon_of(model)
    assert "llm.model.model.embed_tokens.weight" not in names_of(model, matrices["params"])


class Small(nn.Module):
    """One matrix, one bias and one embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.hidden = nn.Linear(6, 4)

    def loss(self, seed: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(7, (5,), generator=draw)
        return (self.hidden(self.words(ids)) - torch.randn(5, 4, generator=draw)).square().sum()


def train(
    model: Small, optimizers: list[torch.optim.Optimizer], steps: range, schedules: list[Any] | None = None
) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.loss(step).backward()
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules or []:
            schedule.step()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_steps_are_those_of_muon_and_adamw_apart():
    joined = Small()
    apart = copy.deepcopy(joined)
    train(joined, [MuonAdamW(joined, lr=0.03, adamw_lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))], range(6))
    muon = Muon([apart.hidden.weight], lr=0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    others = AdamW([apart.words.weight, apart.hidden.bias], lr=0.02, betas=(0.8, 0.9), weight_decay=0.0)
    train(apart, [muon, others], range(6))
    assert same(joined, apart)


def test_muon_steps_as_far_as_adamw_would():
    model = nn.Linear(64, 32, bias=True)
    before = model.weight.detach().clone()
    model(torch.randn(128, 64)).square().sum().backward()
    MuonAdamW(model, lr=0.01, adamw_lr=0.01, weight_decay=0.0).step()
    step = (model.weight - before).square().mean().sqrt().item()
    # 0.2 learning rates is the aim; Newton–Schulz leaves singular values between 0.7 and 1.2.
    assert 0.1 * 0.01 < step < 0.4 * 0.01


def test_adamw_is_torchs_with_decay_on_matrices():
    model = Small()
    apart = copy.deepcopy(model)
    train(model, [adamw(model, lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))], range(4))
    decayed = AdamW([apart.hidden.weight], lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)
    plain = AdamW([apart.words.weight, apart.hidden.bias], lr=0.02, betas=(0.8, 0.9), weight_decay=0.0)
    train(apart, [decayed, plain], range(4))
    assert same(model, apart)


def test_a_step_runs_its_closure_with_gradients():
    model = Small()
    optimizer = MuonAdamW(model, lr=0.03, adamw_lr=0.02, weight_decay=0.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.loss(0)
        loss.backward()
        return loss

    before = copy.deepcopy(model)
    assert optimizer.step(closure).item() == before.loss(0).item()
    assert not same(model, before)


def test_a_schedule_reaches_both_parts():
    model = Small()
    optimizer = MuonAdamW(model, lr=0.03, adamw_lr=0.02, weight_decay=0.0)
    schedule = cosine_with_warmup(optimizer, 10, 0.5)
    for step in range(10):
        assert [part.param_groups[0]["lr"] for part in optimizer.parts] == pytest.approx(
            [0.03 * factor(step, 10, 5), 0.02 * factor(step, 10, 5)]
        )
        train(model, [optimizer], range(step, step + 1), [schedule])
    before = copy.deepcopy(model)
    train(model, [optimizer], range(1))  # the learning rate is zero now
    assert same(model, before)


@pytest.mark.parametrize("make", [MuonAdamW, None])
def test_a_saved_state_continues_to_the_bit(make, tmp_path):
    def parts(model: Small) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = MuonAdamW(model, lr=0.03, adamw_lr=0.02, weight_decay=0.1) if make else adamw(model, 0.02, 0.1)
        return optimizer, cosine_with_warmup(optimizer, 10, 0.3)

    model = Small()
    optimizer, schedule = parts(model)
    train(model, [optimizer], range(4), [schedule])
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    train(model, [optimizer], range(4, 9), [schedule])

    resumed = Small()
    optimizer, schedule = parts(resumed)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    train(resumed, [optimizer], range(4, 9), [schedule])
    assert same(model, resumed)


def factor(step: int, total: int, warmup: int) -> float:
    """Share of the peak learning rate, written out."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize(("total", "ratio", "warmup"), [(100, 0.03, 3), (100, 0.5, 50), (10, 0.0, 1), (7, 0.25, 2)])
def test_the_schedule_is_its_formula(total, ratio, warmup):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine_with_warmup(optimizer, total, ratio)
    rates = []
    for _ in range(total + 3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:total] == pytest.approx([2.0 * factor(step, total, warmup) for step in range(total)])
    assert max(rates) == 2.0
    assert min(rates[:total]) > 0, "every planned step moves"
    assert rates[total:] == [0.0] * 3, "no step beyond the planned ones does"


@pytest.mark.parametrize(("total", "ratio"), [(1, 0.03), (1, 1.0), (2, 1.0)])
def test_the_shortest_runs_have_a_learning_rate(total, ratio):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine_with_warmup(optimizer, total, ratio)
    for _ in range(total):
        assert optimizer.param_groups[0]["lr"] > 0
        optimizer.step()
        schedule.step()
