"""Peak memory of two processes that build a model under FSDP2 or ZeRO-3: `python benchmarks/dealing_out.py`.

Each line is a process: its memory above what it had before building, in units of the whole model's fp32 weights. `each`
builds the model in every process and deals it out then; `first` is what training does. On the CPU, by gloo.
"""

import argparse
import os
import subprocess
import sys
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


def child(kind: str, way: str, tokenizer: str, layers: int) -> None:
    """One of the two processes: builds, and prints what that took."""
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

    @contextmanager
    def everywhere(strategy: Any) -> Any:
        yield True

    if way == "each":
        training.building = everywhere  # type: ignore[assignment]
    llm = {"_target_": "macaw_lit.llms.hf.HFCausalLM", "tokenizer": tokenizer}
    sizes = {**SIZES, "llm": {**llm, "config": {**LLAMA, "vocab_size": 8000, "num_hidden_layers": layers}}}

    class Measured(training.MacawModule):
        def configure_model(self) -> None:
            with torch.device("meta"):  # so that what is imported on the way is not counted
                Macaw.from_config(sizes)
            before = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            super().configure_model()
            whole = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters()) * 4 / 2**20
            peak, left = ((memory(name) - before) / whole for name in ("VmHWM", "VmRSS"))
            rank = os.environ["RANK"]
            print(f"{kind:6} {way:6} process {rank}: peak {peak:.2f}, then {left:.2f} of {whole:.0f} MiB", flush=True)

    macaw = Measured(sizes, lambda model: torch.optim.SGD(model.parameters(), lr=0.1))

    class Nothing(LightningDataModule):
        def train_dataloader(self) -> list[int]:
            return [0]

    settings = {"process_group_backend": "gloo"}
    strategy: Any = FSDP2(**settings) if kind == "fsdp2" else ZeROOnCPU(stage=3, **settings)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, max_steps=0, **quiet)
    trainer.fit(macaw, Nothing())


def memory(name: str) -> float:
    """MiB, from the kernel's account of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def main() -> None:
    """Both strategies, each way, two processes at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default="data/demo/tokenizer")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--strategies", nargs="+", default=["fsdp2", "zero3"])
    parser.add_argument("--ways", nargs="+", default=["each", "first"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.tokenizer, args.layers)
        return
    runs = [(kind, way) for kind in args.strategies for way in args.ways]
    for port, (kind, way) in enumerate(runs):
        shared = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + (os.getpid() + port) % 30_000)}
        shared |= {"TORCHELASTIC_RUN_ID": "benchmark", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
        shared["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the kernel, and is not counted
        words = [sys.executable, __file__, "--tokenizer", args.tokenizer, "--layers", str(args.layers)]
        ranks = [
            subprocess.Popen([*words, "--child", kind, way], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})  # noqa: S603
            for rank in range(2)
        ]
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
