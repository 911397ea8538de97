"""What is watched while training."""

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch import distributed
from torch.optim import Optimizer

from macaw_lit.errors import ConfigError
from macaw_lit.health import COLLAPSED, Health, gradient_shares, watched
from macaw_lit.model import Macaw
from macaw_lit.training.module import MacawModule
from macaw_lit.types import Batch


class Ledger(Callback):
    """Counts what happened to every sample that training touched: seen = used + skipped, exactly, by cause.

    Written to `ledger.json` in the run folder when training ends, and restored with a checkpoint. Each process counts
    its own; `state_dict` adds all up, and so must be called in all of them, as the Trainer does when it saves.
    """

    def __init__(self) -> None:
        self.used = 0
        self.truncated = 0
        self.skipped: Counter[str] = Counter()
        self._before: dict[str, Any] = {"used": 0, "truncated": 0, "skipped": {}}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.used += len(batch.uids)
        self.truncated += batch.truncated
        self.skipped.update(rejection.cause for rejection in batch.skipped)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = self.state_dict()
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "ledger.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Counts of all processes, and of what a run that this one continues had counted."""
        own = {"used": self.used, "truncated": self.truncated, "skipped": dict(self.skipped)}
        counts = [self._before, *from_all_processes(own)]
        skipped: Counter[str] = Counter()
        for count in counts:
            skipped.update(count["skipped"])
        used, truncated = (sum(count[name] for count in counts) for name in ("used", "truncated"))
        return {"seen": used + skipped.total(), "used": used, "truncated": truncated, "skipped": dict(skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict


def from_all_processes(value: Any) -> list[Any]:
    """The values that all processes give, in the order of their ranks; all must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    gathered = [value] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered


class PrintWeights(Callback):
    """Prints, when training starts, which parts have pretrained weights, and what became of every one of them."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        model = _model(pl_module)
        counts = ("loaded", "missing", "unexpected", "mismatched", "left_out")
        table = Table("part", *(name.replace("_", " ") for name in counts), "SHA-256", title="pretrained weights")
        lines = []
        for part in (*model.encoders, "llm"):
            found = model.config.get("identities", {}).get(part)
            if found is None:
                table.add_row(part, *"-" * len(counts), "-")
                lines.append(f"{part}: as initialised, no pretrained weights")
            else:
                table.add_row(part, *(str(found[name]) for name in counts), found["sha256"][:8])
                stated = ", ".join(found["checked"]) or "nothing of activation, heads or preprocessing"
                lines.append(f"{part}: {found['source']} states {stated}")
        console = Console()
        console.print(table)
        for line in lines:
            console.print(line, highlight=False, markup=False)


class AlignmentHealth(Callback):
    """Logs `health/<kind>/<figure>` of `macaw_lit.health` as training goes, and warns once where inputs look all alike.

    Reads what the training step computes anyway, on this rank's rows; only the attention is worked out once more.

    Args:
        every_n_steps: optimizer steps from one reading to the next; the first is taken before the first step.

    Raises:
        ConfigError: the interval is not positive.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"every_n_steps={every_n_steps}; expected at least 1, such as 50")
        self.every_n_steps = every_n_steps
        self._watching = ExitStack()
        self._found: dict[str, Health] | None = None
        self._warned: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step % self.every_n_steps == 0 and self._found is None:
            self._found = self._watching.enter_context(watched(_model(pl_module)))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._found is None:
            return
        self._watching.close()
        shares = gradient_shares(_model(pl_module))
        for kind, health in self._found.items():
            figures = health | shares.get(kind, {})
            readings = {f"health/{kind}/{name}": value for name, value in figures.items()}
            for logger in trainer.loggers:  # at once: `log` would hold them back until Lightning's next logging step
                logger.log_metrics(readings, trainer.global_step)
            if figures.get("cosine", 0.0) > COLLAPSED and kind not in self._warned:
                self._warned.add(kind)
                rank_zero_warn(
                    f"soft tokens of different {kind} inputs have a cosine of {figures['cosine']:.4f}, expected below "
                    f"{COLLAPSED}: the language model can hardly tell them apart; docs/benchmarks.md compares aligners"
                )
        self._found = None


def _model(module: LightningModule) -> Macaw:
    assert isinstance(module, MacawModule)
    return module.model
