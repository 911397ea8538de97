"""Peak memory of two processes that build and save a model under FSDP2 or ZeRO-3: `python benchmarks/dealing_out.py`.

Each line is a process: its memory above what it had before, in units of the whole model's fp32 weights. The language
model's weights are drawn, or come from one safetensors file, from shards of 100 MB in bf16, or from one
`pytorch_model.bin`. Memory is the anonymous resident set (`RssAnon`), read every millisecond: pages of files, which
weights are read from, come and go with what other processes need. On the CPU, by gloo.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

SIZES: dict[str, Any] = {
    "encoders": {
        "vision": {"_target_": "macaw_lit.encoders.clip.ClipEncoder", "width": 192, "layers": 2, "heads": 3},
        "hearing": {"_target_": "macaw_lit.encoders.whisper.WhisperEncoder", "width": 192, "layers": 2, "heads": 3},
    },
    "aligner": {"_target_": "macaw_lit.aligners.macaw.MacawAligner"},
    "modalities": {
        "image": {"encoder": "vision", "aligner": {"kernel": 48, "stride": 36}},
        "audio": {"encoder": "hearing", "aligner": {"kernel": 240, "stride": 220}},
    },
}
LLAMA = {"model_type": "llama", "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2816}


def child(kind: str, weights: str, tokenizer: str, layers: int) -> None:
    """One of the two processes: builds and saves, and prints what that took."""
    import torch
    from lightning import LightningDataModule, Trainer
    from lightning.pytorch.strategies import DeepSpeedStrategy

    from macaw_lit.model import Macaw
    from macaw_lit.training import module as training
    from macaw_lit.training.strategies import FSDP2, ZeRO

    class ZeROOnCPU(ZeRO):
        def setup_environment(self) -> None:
            self.parallel_devices = [torch.device("cpu", index) for index in range(2)]
            super(DeepSpeedStrategy, self).setup_environment()

    llm = {"_target_": "macaw_lit.llms.hf.HFCausalLM", "tokenizer": tokenizer}
    sizes = {**SIZES, "llm": {**llm, "config": {**LLAMA, "vocab_size": 8000, "num_hidden_layers": layers}}}

    name, rank = f"{kind:5} {Path(weights).name:11}", os.environ["RANK"]

    class Measured(training.MacawModule):
        def configure_model(self) -> None:
            with torch.device("meta"):  # so that what is imported on the way is not counted
                Macaw.from_config(sizes)
            with peak() as found:
                super().configure_model()
            self.whole = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters()) * 4 / 2**20
            highest, left = (mib / self.whole for mib in found)
            print(f"{name} process {rank}: peak {highest:.2f}, then {left:.2f} of {self.whole:.0f} MiB", flush=True)

        def on_fit_end(self) -> None:
            with tempfile.TemporaryDirectory() as folder, peak() as found:
                super().on_fit_end()
                if rank == "0":
                    self.trained.save_pretrained(Path(folder) / "model", max_shard_size="100MB")
            print(f"{name} process {rank}: saved with {found[0] / self.whole:.2f} more", flush=True)

    pretrained = {"llm": weights} if Path(weights).is_dir() else {}
    macaw = Measured(sizes, lambda model: torch.optim.SGD(model.parameters(), lr=0.1), pretrained=pretrained)

    class Nothing(LightningDataModule):
        def train_dataloader(self) -> list[int]:
            return [0]

    settings = {"process_group_backend": "gloo"}
    strategy: Any = FSDP2(**settings) if kind == "fsdp2" else ZeROOnCPU(stage=3, **settings)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, max_steps=0, **quiet)
    trainer.fit(macaw, Nothing())


@contextmanager
def peak() -> Iterator[list[float]]:
    """MiB above those at first: the most that the block had, and what it left."""
    before, found, over = memory(), [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            found[0] = max(found[0], memory() - before)
            time.sleep(0.001)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()
        found[1] = memory() - before


def memory() -> float:
    """Anonymous MiB of this process, from the kernel's account."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024


def publish(folder: Path, layers: int) -> None:
    """Write a language model of the benchmark's sizes in three forms."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**LLAMA, "vocab_size": 8000, "num_hidden_layers": layers}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(sizes.pop("model_type"), **sizes))
    model.save_pretrained(folder / "safetensors", max_shard_size="10GB")
    model.config.save_pretrained(folder / "bin")
    torch.save(model.state_dict(), folder / "bin" / "pytorch_model.bin")
    model.bfloat16().save_pretrained(folder / "shards", max_shard_size="100MB")


def main() -> None:
    """Both strategies, all origins of weights, two processes at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default="data/demo/tokenizer")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--strategies", nargs="+", default=["fsdp2", "zero3"])
    parser.add_argument("--weights", nargs="+", default=["random", "safetensors", "shards", "bin"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.tokenizer, args.layers)
        return
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder), args.layers)
        origins = [str(Path(folder) / name) for name in args.weights]
        for port, (kind, weights) in enumerate((kind, weights) for kind in args.strategies for weights in origins):
            together([kind, weights], args, port)


def together(words: list[str], args: argparse.Namespace, port: int) -> None:
    """Two processes at a time, by their words."""
    shared = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + (os.getpid() + port) % 30_000)}
    shared |= {"TORCHELASTIC_RUN_ID": "benchmark", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    shared["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the kernel, and is not counted
    command = [sys.executable, __file__, "--tokenizer", args.tokenizer, "--layers", str(args.layers)]
    ranks = [
        subprocess.Popen([*command, "--child", *words], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})  # noqa: S603
        for rank in range(2)
    ]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
