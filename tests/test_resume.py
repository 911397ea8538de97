"""Runs that are interrupted and gone on with end in the very bits of a run that was left alone."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from macaw_lit.training.checkpoint_files import newest

SCRIPT = Path(__file__).with_name("resume_server.py")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WORDS = [
    "model=demo",
    "llm=llama_tiny",
    "aligner=macaw_matched",
    "data=base",
    "optim=muon",
    "trainer=cpu",
    "callbacks=[checkpoint,ledger]",
    "threads=1",
    "model.encoders.vision.image_size=16",
    "model.encoders.vision.patch_size=4",
    "model.encoders.vision.width=12",
    "model.encoders.hearing.n_ctx=24",
    "model.encoders.hearing.width=12",
    "model.llm.config.hidden_size=16",
    "model.llm.config.num_hidden_layers=1",
    "model.llm.config.num_attention_heads=2",
    "model.llm.config.intermediate_size=32",
    "+model.llm.config.attention_dropout=0.2",  # draws from torch's generator
    "model.pretrained.vision=null",
    "model.pretrained.hearing=null",
    "model.pretrained.llm=null",
    "data.batch_size=2",
    "data.pin_memory=false",
    "data.preprocessor.drop_media=0.3",
    "+reader@data.train.text=alpaca",
    "+reader@data.train.shade=macaw",
    "data.train.shade.read.kind=image",
    "+reader@data.heldout.text=alpaca",
    "trainer.max_epochs=2",
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_train_steps=2",
    "+trainer.enable_progress_bar=false",
]
STEPS = 10  # 19 rows an epoch: ten batches, so five optimizer steps


class Server:
    """Talks to `resume_server.py`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, str(SCRIPT)], env=environment, **pipes)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def train(self, folder: Path, *words: str, world: int = 1, auto: bool = True, **end: Any) -> list[int]:
        """Exit codes of the command in this folder, ended as told."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        places = [f"paths.run_dir={folder}", *(["ckpt_path=auto"] if auto else [])]
        ddp = ["+trainer.strategy=ddp", f"trainer.devices={world}"] if world > 1 else []
        port = 20_000 + random.SystemRandom().randrange(30_000)
        request = {"words": [*WORDS, *self.places(), *ddp, *places, *words], "cwd": str(self.root), **end}
        request |= {"world": world, "log": f"{folder}.log", "port": port}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.seconds = answer["seconds"]
        return answer["codes"]

    def places(self) -> list[str]:
        texts, shades = self.root / "texts.json", self.root / "shades.json"
        return [
            f"model.llm.tokenizer={self.root / 'tokenizer'}",
            f"data.train.text.read.path={texts}",
            f"data.heldout.text.read.path={texts}",
            f"data.train.shade.read.path={shades}",
            f"data.train.shade.read.media_root={self.root}",
        ]


@pytest.fixture(scope="module")
def server(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("resume")
    shutil.copytree(tokenizer_folder, root / "tokenizer")
    texts = [{"instruction": f"Say {n}.", "output": "word " * (1 + n % 4)} for n in range(10)]
    shades = [{"id": f"{n}.png", "instruction": f"Which of {n}?", "response": f"Number {n}."} for n in range(9)]
    (root / "texts.json").write_text(json.dumps(texts))
    (root / "shades.json").write_text(json.dumps({"data": shades}))
    for n in range(9):
        pixels = np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{n}.png")
    server = Server(root)
    yield server
    server.process.kill()
    server.process.wait()


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves that must not depend on interruptions."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    digest = hashlib.sha256()
    for tensor in _tensors([last["state_dict"], last["optimizer_states"], last["lr_schedulers"]]):
        digest.update(tensor.numpy().tobytes() if isinstance(tensor, torch.Tensor) else repr(tensor).encode())
    with (folder / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    return {
        "step": last["global_step"],
        "state": digest.hexdigest(),
        "model": hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": metrics,
        "ledger": json.loads((folder / "ledger.json").read_text()),
    }


def _tensors(node: Any) -> Iterator[Any]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else None
    if children is None:
        yield node
    else:
        for child in children:
            yield from _tensors(child)


@pytest.fixture(scope="module")
def whole(server: Server) -> Callable[..., dict[str, Any]]:
    """What uninterrupted runs leave, by workers and processes, and how long they took."""
    known: dict[tuple[int, int], dict[str, Any]] = {}

    def of(workers: int = 0, world: int = 1) -> dict[str, Any]:
        if (workers, world) not in known:
            folder = server.root / f"whole{workers}{world}"
            assert server.train(folder, f"data.num_workers={workers}", world=world) == [0] * world, log(folder)
            known[workers, world] = outcome(folder) | {"seconds": server.seconds}
        return known[workers, world]

    return of


def log(folder: Path) -> str:
    return Path(f"{folder}.log0").read_text()[-3000:]


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(first[name] == second[name] for name in ("step", "state", "model", "metrics", "ledger"))


WITHIN_A_STEP = {"step": 6}
IN_VALIDATION = {"validation": 2}
IN_A_WRITE = {"write": 0.003, "nth": 2}  # after the start of an epoch
LATE = {"step": 7}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_again_and_again_ends_in_the_same_bits(server, whole, workers):
    folder, words = server.root / f"killed{workers}", [f"data.num_workers={workers}"]
    for end in (WITHIN_A_STEP, IN_VALIDATION, IN_A_WRITE, LATE):
        (code,) = server.train(folder, *words, **end)
        assert code in (-signal.SIGKILL, -signal.SIGALRM), log(folder)
    assert server.train(folder, *words) == [0], log(folder)
    assert whole(workers)["step"] == STEPS
    assert [row["step"] for row in whole(workers)["metrics"] if row["train/loss"]] == [str(n) for n in range(STEPS)]
    assert same(outcome(folder), whole(workers))
    if workers == 0:
        shutil.rmtree(folder / "model")  # as if the end had come between training and saving
        assert server.train(folder, *words) == [0], log(folder)
        assert same(outcome(folder), whole()), "what is done is not trained on"


def test_signals_save_and_a_damaged_checkpoint_is_passed_over(server, whole):
    folder, words = server.root / "signals", ["data.num_workers=0"]
    assert server.train(folder, *words, signal=[6, int(signal.SIGTERM)]) == [0], log(folder)
    go_on = f"go on with the same words and ckpt_path=auto paths.run_dir={folder}"
    assert log(folder).splitlines()[-1] == f"stopped by SIGTERM after step 3; {go_on}"
    newest = folder / "checkpoints" / "step0000003.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert server.train(folder, *words, signal=[4, int(signal.SIGUSR1)]) == [0], log(folder)
    assert f"{newest}: skipped, its part " in log(folder)
    assert f"going on from {folder}/checkpoints/step0000002.ckpt" in log(folder)
    assert "stopped by SIGUSR1 after step 4" in log(folder)
    assert server.train(folder, *words) == [0], log(folder)
    assert same(outcome(folder), whole())


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(server, whole):
    folder, words = server.root / "full", ["data.num_workers=0"]
    assert server.train(folder, *words, full=2) == [1], log(folder)
    line = log(folder).splitlines()[-1]
    assert line.startswith(f"error: checkpoint {folder}/checkpoints/step0000004.ckpt cannot be written ([Errno 27] ")
    assert "bytes are free" not in line
    assert " are free; make room and go on with ckpt_path=auto" in line
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["last.ckpt", "step0000002.ckpt"]
    assert server.train(folder, *words) == [0], log(folder)
    assert same(outcome(folder), whole())


def test_another_model_and_an_overwritten_run_are_refused(server, whole):
    whole()
    folder, words = server.root / "whole01", ["data.num_workers=0"]
    assert server.train(folder, *words, "model.modalities.image.aligner.kernel=2") == [1]
    assert "of another model: model.modalities.image.aligner.kernel was 4, now is 2;" in log(folder).splitlines()[-1]
    assert server.train(folder, *words, auto=False) == [1]
    assert "holds a run, whose checkpoint step0000010.ckpt would be overwritten" in log(folder).splitlines()[-1]


@pytest.mark.parametrize("world", [1, 2])
def test_weights_in_4_bits_end_in_the_same_bits_and_are_no_others(server, world):
    words = ["data.num_workers=0", "adapt=qlora", "model.adapt.llm.lora.r=2"]
    alone, folder = (server.root / f"{name}{world}" for name in ("qlora", "qlora_killed"))
    assert server.train(alone, *words, world=world) == [0] * world, log(alone)
    assert -signal.SIGKILL in server.train(folder, *words, world=world, **WITHIN_A_STEP), log(folder)
    assert server.train(folder, *words, world=world) == [0] * world, log(folder)
    assert "going on from" in log(folder)
    assert same(outcome(folder), outcome(alone))
    assert set(server.train(folder, *words, "adapt=lora", world=world)) == {1}
    assert "model.adapt.llm.lora.bits was 4, now is None" in log(folder).splitlines()[-1]


# The whole matrix: python -m pytest -m exhaustive tests/test_resume.py


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(server, whole, workers, world):
    draw, kills, runs = random.Random(workers * 10 + world), 0, 0
    span = whole(workers, world)["seconds"]
    while kills < 25:
        runs += 1
        folder = server.root / f"random{workers}{world}{runs}"
        words = [f"data.num_workers={workers}"]
        while True:
            end = {"alarm": draw.uniform(0, span), "rank": draw.randrange(world)}
            codes = server.train(folder, *words, world=world, **end)
            if codes == [0] * world:
                break
            assert -signal.SIGALRM in codes, log(folder)
            kills += 1
        assert same(outcome(folder), whole(workers, world)), log(folder)
    print(f"{kills} kills in {runs} runs, {workers} workers, {world} processes: all equal")


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_killed_while_a_checkpoint_is_written(server, whole):
    draw, kills, runs, unfinished = random.Random(0), 0, 0, 0
    while kills < 50:
        runs += 1
        folder = server.root / f"writes{runs}"
        while server.train(folder, "data.num_workers=0", write=draw.uniform(0, 0.006), nth=draw.randint(1, 2)) != [0]:
            kills += 1
            unfinished += any((folder / "checkpoints").glob("*.part"))
            path, damaged = newest(folder / "checkpoints")
            assert not damaged
            assert path is None or torch.load(path, weights_only=True)
        assert same(outcome(folder), whole()), log(folder)
    print(f"{kills} kills in {runs} runs, {unfinished} with a file half written: all equal")
