"""Two processes under every strategy do what one does, whatever is trained on whatever media, and after a stop."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from macaw_lit.model import Macaw

SCRIPT = Path(__file__).with_name("rank.py")
LIMIT = 600  # seconds; the first run of DeepSpeed on a machine compiles for minutes
pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT + 60)]


def launch(out: Path, processes: int, *words: str, script: Path = SCRIPT) -> None:
    """Runs all processes to their end, or ends those that are left; they end by themselves if this one dies."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 30_000)}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(processes)}
    started, logs = [], [out / f"rank{rank}.log" for rank in range(processes)]
    try:
        for rank, log in enumerate(logs):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as file:
                started.append(
                    subprocess.Popen([sys.executable, str(script), *words], env=environment, stdout=file, stderr=file)
                )
        deadline = time.monotonic() + LIMIT
        while any(process.poll() is None for process in started):
            assert time.monotonic() < deadline, "a hang: " + logs[0].read_text()[-2000:]
            if any(process.poll() for process in started):
                break
            time.sleep(0.2)
        codes = [process.poll() for process in started]
        assert codes == [0] * processes, "".join(log.read_text()[-3000:] for log in logs)
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def alone(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the same rows."""
    out = tmp_path_factory.mktemp("alone")
    launch(out, 1, "plain", str(tokenizer_folder), str(out))
    return out


def distance(first: Path, second: Path) -> float:
    """Of the weights of two runs, relative to how long they are."""
    weights, others = (
        load_file(first / "model" / "model.safetensors"),
        load_file(second / "model" / "model.safetensors"),
    )
    assert weights.keys() == others.keys()
    off = sum((weights[name].double() - others[name].double()).square().sum() for name in weights)
    return float((off / sum(tensor.double().square().sum() for tensor in weights.values())).sqrt())


def test_rows_in_one_batch_and_in_three_give_the_same_update(alone):
    # float32 sums in another order, over six steps; a wrong divisor of a step of 12 rows would give 1e-2
    assert distance(alone / "dealt1", alone / "dealt3") < 1e-6
    assert distance(alone / "dealt1", alone / "packed") < 1e-6
    assert distance(alone / "dealt1", alone / "schedule") > 1e-3, "training moves the weights by more than the bound"
    assert distance(alone / "frozen", alone / "lora") > 1e-3, "so does what is trained through adapters or in full"
    assert distance(alone / "lora", alone / "qlora") > 1e-3, "so do 4 bits"


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_two_processes_do_what_one_does(
    kind: str, alone: Path, tokenizer_folder: Path, tmp_path: Path, make_batch: Callable[..., object]
):
    launch(tmp_path, 2, kind, str(tokenizer_folder), str(tmp_path))
    # float32 sums in another order: measured 2e-8 at most
    assert distance(alone / "dealt1", tmp_path / "dealt1") < 1e-6
    assert distance(alone / "dealt1", tmp_path / "dealt3") < 1e-6
    assert distance(alone / "dealt1", tmp_path / "packed") < 1e-6
    assert distance(alone / "schedule", tmp_path / "schedule") < 1e-6
    assert distance(tmp_path / "dealt3", tmp_path / "resumed") < 1e-6
    # the same through tied, frozen and adapted parts, whose blocks are computed again in the backward pass
    assert distance(alone / "frozen", tmp_path / "frozen") < 1e-6
    assert distance(alone / "lora", tmp_path / "lora") < 1e-6
    assert distance(alone / "lora", tmp_path / "lora_resumed") < 1e-6
    assert distance(alone / "qlora", tmp_path / "qlora") < 1e-6
    assert distance(alone / "qlora", tmp_path / "qlora_resumed") < 1e-6
    for case in ("dealt1", "dealt3", "resumed", "packed", "schedule"):
        assert json.loads((tmp_path / case / "ledger.json").read_text()) == json.loads(
            (alone / case.replace("resumed", "dealt3") / "ledger.json").read_text()
        )
    for case in ("dealt3", "lora", "qlora"):
        models = [Macaw.from_pretrained(folder / case / "model") for folder in (alone, tmp_path)]
        batch = make_batch(models[0], [(1, {"image": 1}), (2, {}), (3, {"video": 1, "audio": 1})])
        first, second = (model(batch).nll for model in models)
        torch.testing.assert_close(second, first, rtol=1e-5, atol=0)  # weights that differ by 1e-8, through the model


def test_all_processes_stop_where_one_meets_too_many_bad_samples(tokenizer_folder: Path, tmp_path: Path):
    launch(tmp_path, 2, str(tokenizer_folder), str(tmp_path), script=SCRIPT.with_name("skips.py"))
    ends, others = (json.loads((tmp_path / f"ends{rank}.json").read_text()) for rank in range(2))
    assert ends == others, "at the same step, with the same line"
    step, line = ends["strict"]
    assert step == 2, "the second process meets its first bad row in its second batch"
    assert line.startswith("train source 'mine', epoch 0: ")
    assert "rows were skipped (missing " in line
    step, line = ends["usual"]
    assert step == 10, "the first look"
    ledgers = {name: json.loads((tmp_path / name / "ledger.json").read_text()) for name in ends}
    lost, seen = ledgers["usual"]["skipped"]["missing"], ledgers["usual"]["seen"]
    assert line.startswith(f"train source 'mine', epoch 0: {lost} of {seen} rows were skipped (missing {lost})")
    assert ledgers["usual"]["used"] == seen - lost == 40
    assert ends["whole"] == ends["resumed"] == [15, ""]
    assert ledgers["resumed"] == ledgers["whole"]
    assert ledgers["whole"]["used"] == 60
    assert ledgers["whole"]["skipped"]["missing"] >= 10


@pytest.mark.parametrize("stage", [2, 3])
def test_overflows_of_one_process_in_fp16_are_counted_and_end_all_with_the_layer(
    stage: int, tokenizer_folder: Path, tmp_path: Path
):
    launch(tmp_path, 2, f"half{stage}", str(tokenizer_folder), str(tmp_path))
    for rank in range(2):
        healthy = json.loads((tmp_path / f"healthy{stage}-{rank}.json").read_text())
        assert healthy["error"] == ""
        assert healthy["skipped"] == healthy["train/skipped_steps"] >= 1, "a scale of 2^24 is too high for fp16"
        assert healthy["train/loss_scale"] == 2.0 ** (24 - healthy["skipped"])
        assert healthy["steps"] == 24
        assert healthy["finite"]
        broken = json.loads((tmp_path / f"broken{stage}-{rank}.json").read_text())
        # from 2^3 it falls to its smallest, at which DeepSpeed alone would end training without a word of where
        assert "6 steps in a row overflowed fp16 by step 6, the loss scale is down to 1:" in broken["error"]
        assert "first in llm: model.model.layers.1.mlp.down_proj.weight;" in broken["error"]
        assert broken["finite"], "no step was taken"
