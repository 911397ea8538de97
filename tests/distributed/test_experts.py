"""Two processes whose tokens go to different experts neither wait for each other nor differ from one process."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).with_name("experts.py"))
LIMIT = 600


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT + 60)
def test_experts_that_one_process_alone_sends_tokens_to(together, one_agent, tokenizer_folder, tmp_path):
    rest = (str(tokenizer_folder), str(tmp_path))
    together([[SCRIPT, "plain", *rest]], tmp_path, LIMIT)
    together([one_agent(2, SCRIPT, "fsdp2,zero3", *rest)], tmp_path, LIMIT)
    alone = load_file(tmp_path / "plain" / "model" / "model.safetensors")
    length = sum(tensor.double().square().sum() for tensor in alone.values())
    for kind in ("fsdp2", "zero3"):
        beside = load_file(tmp_path / kind / "model" / "model.safetensors")
        off = sum((alone[name].double() - beside[name].double()).square().sum() for name in alone)
        assert (off / length).sqrt() < 1e-6, "float32 sums in another order"
