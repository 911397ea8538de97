"""What is watched while training."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from macaw_lit.types import Batch


class Ledger(Callback):
    """Counts what happened to every sample that training touched: seen = used + skipped, exactly, by cause.

    Written to `ledger.json` in the run folder when training ends, and restored with a checkpoint.
    """

    def __init__(self) -> None:
        self.used = 0
        self.truncated = 0
        self.skipped: Counter[str] = Counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.used += len(batch.uids)
        self.truncated += batch.truncated
        self.skipped.update(rejection.cause for rejection in batch.skipped)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "ledger.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.state_dict(), indent=2) + "\n", encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        return {
            "seen": self.used + self.skipped.total(),
            "used": self.used,
            "truncated": self.truncated,
            "skipped": dict(self.skipped),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.used, self.truncated = state_dict["used"], state_dict["truncated"]
        self.skipped = Counter(state_dict["skipped"])
