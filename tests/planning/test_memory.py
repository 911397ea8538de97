"""Bytes of a model of 1,000 values, 600 of them trained by AdamW, worked out by hand for each strategy."""

import pytest
import torch

from macaw_lit.errors import ConfigError
from macaw_lit.planning.memory import Counts, Layout, demand, layout_of, offloaded, resident
from macaw_lit.planning.step import Step

COUNTS = Counts(all=1000, trained=600, states=1200, largest=100, root=300, block=200)
ZERO = {"_target_": "macaw_lit.training.strategies.ZeRO"}
FSDP2 = {"_target_": "macaw_lit.training.strategies.FSDP2"}
OFFLOAD = {"offload_optimizer": True, "offload_parameters": True}


def kept(strategy: object, precision: str = "16-mixed", devices: int = 4) -> tuple[int, ...]:
    layout = layout_of({"strategy": strategy, "precision": precision, "devices": devices})
    found = resident(layout, COUNTS)
    return tuple(found[cause] for cause in ("weights", "gradients", "optimizer states", "communication buffers"))


def test_bytes_by_hand() -> None:
    # fp32 weights, gradients and two states; autocast's copies are no part of what is kept
    assert kept("auto", "32-true", 1) == (4000, 2400, 4800, 0)
    assert kept("auto", "bf16-mixed", 1) == (4000, 2400, 4800, 0)
    assert kept("auto", "bf16-true", 1) == (2000, 1200, 2400, 0)
    # DDP: all of it everywhere, and buckets as large as the gradients
    assert kept("ddp", "bf16-mixed") == (4000, 2400, 4800, 2400)
    assert kept("auto", "bf16-mixed") == kept("ddp", "bf16-mixed")
    # ZeRO: 16-bit weights of all, and fp32 masters and states of what is trained, 12 · 600 / 4; two buckets of 2 · 600
    assert kept({**ZERO, "stage": 1}) == (2000, 1200, 1800, 2400)
    assert kept({**ZERO, "stage": 2}) == (2000, 300, 1800, 2400)
    # stage 3: weights dealt out too, and gathered again: 2 · 1000 live at most
    assert kept({**ZERO, "stage": 3}) == (500, 300, 1800, 2400 + 2000)
    assert kept({**ZERO, "stage": 3, **OFFLOAD}) == (0, 0, 0, 4400)
    assert kept("deepspeed_stage_3_offload") == (0, 0, 0, 4400)
    # FSDP2: the root's 300 and two blocks of 200 whole, weights and then gradients
    assert kept(FSDP2, "32-true") == (1000, 600, 1200, 4 * (2 * 300 + 4 * 200))
    # with bf16 these are in bf16, and the root's gradients once more in fp32; what is kept stays fp32
    assert kept(FSDP2, "bf16-mixed") == (1000, 600, 1200, 2 * (2 * 300 + 4 * 200) + 4 * 300)
    assert kept(FSDP2, "bf16-true") == (500, 300, 600, 2 * (2 * 300 + 4 * 200))


def test_main_memory_by_hand() -> None:
    zero3 = layout_of({"strategy": {**ZERO, "stage": 3, **OFFLOAD}, "precision": "16-mixed", "devices": 4})
    assert offloaded(zero3, COUNTS) == 12 * 600 + 2 * 600 + 2 * 1000
    assert offloaded(Layout("zero3", 4, torch.float16), COUNTS) == 0


def step(forward: int, backward: int, sharded: int, gradients: int) -> Step:
    return Step(
        1, {"activations": forward}, {"activations": backward, "gradients": gradients}, {"activations": sharded}, 0
    )


@pytest.mark.parametrize(
    ("layout", "of", "moment", "total"),
    [
        # the last step's gradients are gone in the forward pass: 4000 + 4800 + 9000, unless they are accumulated
        (Layout("plain", 1, torch.float32, gpu=False), step(9000, 400, 600, 100), "forward", 17_800),
        (Layout("plain", 1, torch.float32, gpu=False, accumulate=2), step(9000, 400, 600, 100), "forward", 20_200),
        # they come one by one in the backward pass: 4000 + 4800 + 3000 + 1000
        (Layout("plain", 1, torch.float32, gpu=False), step(500, 3000, 4500, 1000), "backward", 12_800),
        # unless they are accumulated: 4000 + 2400 + 4800 + 4500
        (Layout("plain", 1, torch.float32, accumulate=2), step(500, 3000, 4500, 1000), "backward", 15_700),
        # on a GPU, AdamW's roots of all trained values: 11200 + 2400; on a CPU of the largest parameter: 2 · 400
        (Layout("plain", 1, torch.float32), step(0, 0, 0, 0), "optimizer step", 13_600),
        (Layout("plain", 1, torch.float32, gpu=False), step(0, 0, 0, 0), "optimizer step", 12_000),
        # FSDP2 drops its share of them too: 1000 + 1200 + 4000 + 9000; ZeRO keeps its buffers: 500 + 300 + 1800 + 4400
        (
            Layout("fsdp2", 4, torch.bfloat16, masters=torch.float32),
            step(9000, 400, 600, 100),
            "forward",
            15_200,
        ),
        (Layout("zero3", 4, torch.float16), step(9000, 400, 600, 100), "forward", 16_000),
        # ZeRO-3 deals gradients out at once: 500 + 300 + 1800 + 4400 + 4500
        (Layout("zero3", 4, torch.float16), step(500, 3000, 4500, 1000), "backward", 11_500),
    ],
)
def test_the_greatest_moment_by_hand(layout: Layout, of: Step, moment: str, total: int) -> None:
    found, causes = demand(layout, COUNTS, of)
    assert (found, sum(causes.values())) == (moment, total)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "colossal"}, "trainer.strategy=colossal: no plan for it"),
        ({"strategy": "fsdp"}, "trainer.strategy=fsdp: no plan for it"),
        ({"precision": "8"}, "trainer.precision=8: expected one of"),
        ({"devices": "auto"}, "trainer.devices=auto: how many"),
        ({"devices": -1, "strategy": ZERO}, "trainer.devices=-1: how many"),
        ({"strategy": FSDP2, "precision": "16-mixed"}, "choose bf16-mixed"),
    ],
)
def test_what_cannot_be_planned_is_said(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        layout_of(settings)


def test_processes_are_counted_over_nodes() -> None:
    assert layout_of({"devices": 8, "num_nodes": 2}).world == 16
    assert layout_of({"devices": [0, 2]}).world == 2
    assert layout_of({"devices": "auto", "accelerator": "cpu"}).world == 1
