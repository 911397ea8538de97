"""The plan as a user asks for it."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from macaw_lit.plan import main

Call = Callable[..., tuple[int, str, str]]


def small(tokenizer_folder: Path) -> list[str]:
    """A model of a million weights; no file of a data set is there."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return [
        "encoder@model.encoders.vision=clip_tiny",
        "encoder@model.encoders.hearing=whisper_tiny",
        "model.modalities.image.aligner={kernel: 4, stride: 4}",
        "model.modalities.video.aligner={kernel: 16, stride: 16}",
        "model.modalities.audio.aligner={kernel: 24, stride: 24}",
        f"model.llm.tokenizer={tokenizer_folder}",
        f"model.llm.config={json.dumps({'model_type': 'llama', **sizes}).replace(chr(34), '')}",
    ]


def test_the_paper_s_run_is_planned_without_weights_or_data_in_ten_seconds(tmp_path: Path) -> None:
    """By the processor's time, which does not depend on what else runs here; imports are most of it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "macaw_lit.plan", "experiment=macaw_7b", "format=json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20  # twice, for a shared core
    plan = json.loads(done.stdout)
    # 12·(h² …) written out: LLaMA-7B as published has 6,738,415,616; seven more tokens in two matrices of width 4096.
    assert plan["parts"]["llm"] == [6_738_415_616 + 2 * 7 * 4096] * 2
    assert (plan["strategy"], plan["world"], plan["rows_per_step"], plan["tokens_per_row"]) == ("zero3", 8, 96, 512)
    assert plan["row"]["media"] == {"image": 5 + 2, "video": 39 + 2, "audio": 6 + 2}
    # 150 000 rows over 8 ranks in batches of 4 are 4 688 batches; of 3 each 1 563 steps; 5 epochs
    assert plan["steps"] == 5 * 1563
    # 6 operations a weight and token for all but the table, which is looked up; attention and encoders add the rest
    tokens, weights = 96 * 512, 6_738_472_960 - 32_007 * 4096
    assert 1.0 < plan["flops"] / (6 * weights * tokens) < 1.1
    assert plan["hours"] == plan["steps"] * plan["flops"] / (8 * 312e12 * 0.4) / 3600
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_ends_with_exit_code_2_and_one_line(
    tokenizer_folder: Path, tmp_path: Path, call: Call
) -> None:
    words = [*small(tokenizer_folder), "reserve_gib=0", "trainer.devices=1"]
    code, out, err = call(main, tmp_path, *words, "gpu_gib=0.02")
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: it will not fit: ")
    assert "most is activations" in line
    assert "adapt=lora" in line
    assert "memory of each of 1: plain" in out
    assert call(main, tmp_path, *words, "gpu_gib=1")[0] == 0


@pytest.mark.parametrize(
    ("more", "moment"),
    [
        ([], "backward"),
        (["trainer=deepspeed_zero2_bf16", "trainer.devices=1", "data.batch_size=1"], "optimizer step"),
    ],
)
def test_the_largest_batch_fits_and_one_more_row_does_not(
    tokenizer_folder: Path, tmp_path: Path, call: Call, more: list[str], moment: str
) -> None:
    words = [*small(tokenizer_folder), "format=json", "reserve_gib=0", "gpu_gib=0.25", *more]
    plan = json.loads(call(main, tmp_path, *words)[1])
    assert plan["moment"] == moment
    fits = plan["fits"]
    assert fits > 4
    assert call(main, tmp_path, *words, f"data.batch_size={fits}")[0] == 0
    code, _, err = call(main, tmp_path, *words, f"data.batch_size={fits + 1}")
    assert code == 2
    assert f"data.batch_size={fits} or less" in err


def test_mistakes_are_one_line(tokenizer_folder: Path, tmp_path: Path, call: Call) -> None:
    for word, said in (
        ("+trainer.strategy=colossal", "trainer.strategy=colossal: no plan for it; expected auto, ddp"),
        ("trainer.precision=12", "trainer.precision=12: expected one of 32"),
        ("trainer.devices=-1", "trainer.devices=-1: how many is for the plan to know"),
        ("format=xml", "format=xml: expected table or json"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches=0: expected at least 1"),
        ("trainer.max_epochs=abc", "trainer.max_epochs=abc: expected a whole number or null"),
        ("trainer.num_nodes=-1", "trainer.num_nodes=-1: expected at least 1"),
        ("trainer.limit_train_batches=abc", "trainer.limit_train_batches=abc: expected a number of batches"),
        ("data.preprocessor.max_length=abc", "data.preprocessor.max_length=abc: expected a whole number"),
        ("data.train.text.count=abc", "data.train.text.count=abc: expected a whole number"),
        ("row.text=abc", "row.text=abc: expected a whole number"),
        ("reserve_gib=-3", "reserve_gib=-3: expected a number from 0 to"),
        ("optim.lr=abc", "optim.lr=abc: expected a number"),
        ("mfu=0", "mfu=0: expected a number from 0.001 to 1"),
        ("data.batch_size=0", "data.batch_size=0"),
        ("row.text=600", "leaves 1 to"),
        ("data.preprocessor.max_length=12", "raise max_length=12"),
        ("gpu_gb=80", "did you mean gpu_gib"),
        ("+gpu_gb=80", "gpu_gb: no such key; did you mean gpu_gib?"),
        (
            "+trainer.max_step=3",
            "max_step: lightning.Trainer takes no such argument; did you mean trainer.max_",
        ),
        ("+model.llm.config.hiden_size=3", "did you mean model.llm.config.hidden_size?"),
    ):
        code, _, err = call(main, tmp_path, *small(tokenizer_folder), word)
        assert (code, len(err.splitlines())) == (1, 1), err
        assert said in err
