"""Two processes train in bf16 by FSDP2, and no more weights are whole than those of the block at work."""

import json

import pytest
import torch
from safetensors.torch import load_file

LIMIT = 600
pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT + 60)]


def test_weights_in_bf16_are_whole_a_block_at_a_time(together, one_agent, tokenizer_folder, tmp_path):
    script = __file__.replace("test_slices", "slices")
    together([[script, "plain", str(tokenizer_folder), str(tmp_path)]], tmp_path, LIMIT)
    together([one_agent(2, script, "fsdp2", str(tokenizer_folder), str(tmp_path))], tmp_path, LIMIT)
    for rank in range(2):
        seen = json.loads((tmp_path / f"seen{rank}.json").read_text())
        assert seen["with memory"] == [], "before the weights are dealt out"
        assert seen["blocks"] >= 4, "two encoders and two layers"
        assert seen["forward"] == 1
        assert seen["backward"] <= 2, "FSDP2 gathers the next one while one is at work"
        assert seen["types"] == ["torch.bfloat16"]
        assert seen["gradients"] == ["torch.float32"]
    names = ("start", "fp32", "bf16", "resumed")
    runs = {name: load_file(tmp_path / name / "model" / "model.safetensors") for name in names}
    assert {tensor.dtype for tensor in runs["bf16"].values()} == {torch.float32}, "the masters are saved"

    def distance(one: str, other: str) -> float:
        off = [(runs[one][name].double() - runs[other][name].double()).square().sum() for name in runs[one]]
        return float(torch.stack(off).sum().sqrt())

    # Each weight and activation is rounded to 8 bits: measured 0.006; a part whose gradient is lost gives far more.
    assert distance("bf16", "fp32") < 0.02 * distance("start", "fp32")
    assert distance("bf16", "resumed") < 1e-6 * distance("start", "fp32"), "the same computation"
