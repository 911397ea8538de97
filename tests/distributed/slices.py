"""One process of a training in bf16 by FSDP2, or alone in fp32, and what it saw: `slices.py KIND TOKENIZER OUT`."""

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import rank
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from conftest import tiny_sizes
from macaw_lit.data.datamodule import Source
from macaw_lit.deferred import Deferred
from macaw_lit.model import Macaw
from macaw_lit.training import dealing, module

SEEN: dict[str, Any] = {}


def prepare(strategy: Any, model: Macaw) -> None:
    """As ever, and notes what has memory before."""
    with_memory = [name for name, p in model.named_parameters() if not (p.is_meta or isinstance(p, Deferred))]
    SEEN["with memory"] = with_memory
    dealing.prepare(strategy, model)


class Watched(module.MacawModule):
    """Notes which weights are gathered when a block begins, forward and back, and the types of all of them."""

    def configure_model(self) -> None:
        super().configure_model()
        groups = {name: each for name, each in self.model.named_modules() if type(each).__name__.startswith("FSDP")}
        blocks = {name: each for name, each in groups.items() if name}
        SEEN.update(blocks=len(blocks), forward=0, backward=0, types=[], gradients=[])

        def note(way: str) -> None:
            gathered = [each for each in blocks.values() if not any(isinstance(p, DTensor) for p in each.parameters())]
            SEEN[way] = max(SEEN[way], len(gathered))
            types = {str(p.dtype) for each in gathered for p in each.parameters()}
            SEEN["types"] = sorted({*SEEN["types"], *types})

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            note("forward")

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            first = output if isinstance(output, torch.Tensor) else output[0]
            if first.requires_grad:
                first.register_hook(lambda _: note("backward"))

        for each in blocks.values():
            each.register_forward_pre_hook(enter)
            each.register_forward_hook(leave)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = {str(p.grad.dtype) for p in self.model.parameters() if p.grad is not None}
        SEEN["gradients"] = sorted({*SEEN["gradients"], *gradients})


def main(kind: str, tokenizer_folder: Path, out: Path) -> None:
    sizes = tiny_sizes(tokenizer_folder)
    blueprint = Macaw.from_config(sizes)
    rows = 12 // int(os.environ.get("WORLD_SIZE", "1"))
    data = partial(rank.dealing_out, blueprint, Source(rank.read), None, rows)

    if kind == "plain":
        rank.fit(out / "fp32", kind, sizes, data(), max_epochs=4)
        torch.manual_seed(0)
        Macaw.from_config(sizes).save_pretrained(out / "start" / "model")
        return
    rank.MacawModule, module.prepare = Watched, prepare  # type: ignore[misc]
    settings: dict[str, Any] = {"max_epochs": 4, "precision": "bf16-mixed"}
    rank.fit(out / "bf16", kind, sizes, data(), **settings)
    (out / f"seen{os.environ['RANK']}.json").write_text(json.dumps(SEEN))
    rank.fit(out / "resumed", kind, sizes, data(), out / "bf16" / "step=4.ckpt", **settings)


if __name__ == "__main__":
    threading.Thread(target=rank.end_with_parent, args=(os.getppid(),), daemon=True).start()
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
