"""Two agents of torchrun on this machine stand for two machines: one run, one folder, one writer."""

import csv
import json

import pytest
import torch
from omegaconf import OmegaConf

LIMIT = 400  # seconds, on a machine that does much else
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT)]


def agent(port: int, node: int, *words: str, name: str = "pair") -> list[str]:
    """The command that is typed on machine `node`, word for word but for the address."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", name]
    host = ["--rdzv-conf", f"is_host={int(node == 0)}", "--local-addr", "127.0.0.1"]
    return ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *rendezvous, *host, *words]


def test_two_machines_train_one_run(together, tiny_run, tmp_path, unused_port):
    words = [word for word in tiny_run.words if not word.startswith("evaluation")]
    words += ["~evaluation", "trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    words += ["trainer.num_nodes=2", "trainer.devices=1", "trainer.max_steps=2"]
    words += [f"paths.data_dir={tiny_run.root}/data", "trainer.limit_val_batches=0"]
    commands = [agent(unused_port, node, "-m", "macaw_lit.train", *words) for node in range(2)]
    first, second = together(commands, tmp_path, LIMIT)
    (folder,) = (tmp_path / "logs/train/runs").iterdir()
    assert folder.name == "torchrun-pair"
    printed = [str(folder) in text.splitlines() for text in (first, second)]
    assert sorted(printed) == [False, True], "one process tells the user"
    assert [("── seed: 0" in text) for text in (first, second)] == printed
    with (folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["0", "1"]
    assert json.loads((folder / "ledger.json").read_text())["seen"] == 2 * 2 * 4, "steps × machines × rows"
    assert json.loads((folder / "metrics.json").read_text())["metrics"]["steps"] == 2
    assert OmegaConf.load(folder / "config.yaml").paths.run_dir == str(folder)
    assert (folder / "model" / "model.safetensors").is_file()
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert last["MacawDataModule"]["position"] == 2 * 2 * 4, "each row once, counted over both machines"


def test_processes_that_do_not_multiply_are_one_line(call, tiny_run, tmp_path, monkeypatch):
    from macaw_lit.train import main

    for name, value in {"WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "pair", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    words = [*tiny_run.words, "trainer.num_nodes=2", "trainer.devices=1", f"hydra.run.dir={tmp_path}/run"]
    code, _, err = call(main, tiny_run.root, *words)
    assert code == 1
    assert "torchrun has started 4 processes, and trainer.devices=1 × trainer.num_nodes=2 are 2" in err
