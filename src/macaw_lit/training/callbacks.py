"""What is watched while training."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch.optim import Optimizer

from macaw_lit.data.accounts import Accounts, check_rate, is_certain, too_many, total
from macaw_lit.data.datamodule import MacawDataModule
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.files import write_whole
from macaw_lit.health import COLLAPSED, Health, gradient_shares, watched
from macaw_lit.model import Macaw
from macaw_lit.training.module import MacawModule
from macaw_lit.training.strategies import from_all_processes
from macaw_lit.types import Batch

CHECK_EVERY = 10  # batches from one look at the ledgers of all processes to the next, which waits for them


class Ledger(Callback):
    """Counts what happened to every sample that training touched: seen = used + truncated + skipped, exactly.

    By epoch of the mixture, source and cause. The rows of each source that an epoch was trained on are logged as
    `mix/<source>`, and those skipped as `skipped/<source>`, when it ends; `ledger.json` in the run folder is written
    then and when training ends. A checkpoint restores the counts. Each process counts its own; `state_dict` adds all
    up, and so must be called in all of them, as the Trainer does when it saves.

    Training stops in all processes at once where a source loses more than `max_skip_rate` of the rows that the epoch
    has seen of it: within an epoch as soon as that is certain, as `data.accounts.is_certain` has it, looked at every
    `CHECK_EVERY` batches; and exactly when an epoch is over, before the next begins. With the last epoch there is
    nothing left to stop: `settle` raises when the model has been saved.

    `ledger.json` has the same of the last validation under `heldout`, where a source must not lose more either:
    training stops with the epoch.

    Args:
        max_skip_rate: from 0, which stops at the first bad sample, to 1, which never stops.

    Raises:
        ConfigError: it is no share.
        DataError: too many samples of a source were skipped.
    """

    def __init__(self, max_skip_rate: int | float = 0.01) -> None:
        check_rate(max_skip_rate)
        self.max_skip_rate = max_skip_rate
        self._own = Accounts()
        self._validated = Accounts()  # by this process, since the validation began
        self._heldout: dict[str, Any] = {}  # by all processes, when the last one ended
        self._all_heldout = True  # whether that went over all rows
        self._before: dict[str, Any] = {}
        self._epoch: int | None = None  # of the last batch; None before the first
        self._over: str | None = None
        self._ended: int | None = None  # the epoch that was over last

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._over:
            raise DataError(self._over)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._own.count(batch)
        self._epoch = batch.epoch
        if self.max_skip_rate == 0 or (batch_idx + 1) % CHECK_EVERY == 0:
            accounts = self.accounts()
            if line := self._too_many(accounts, batch.epoch, exactly=False):
                self._write(trainer, accounts)
                raise DataError(line)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch is None:  # resumed where an epoch ended
            return
        accounts = self.accounts()
        self._write(trainer, accounts)
        sources = accounts[self._epoch]
        rows = {f"mix/{name}": float(account.trained) for name, account in sources.items()}
        rows |= {f"skipped/{name}": float(account.skipped.total()) for name, account in sources.items()}
        for logger in trainer.loggers:
            logger.log_metrics(rows, trainer.global_step)
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # not where max_steps broke the epoch off
            self._ended = self._epoch
            self._over = self._over or self._too_many(accounts, self._epoch, exactly=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = Accounts()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._validated.count(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:  # of a few batches
            return
        whole = Accounts()
        for state in from_all_processes(self._validated.as_json()):
            whole.add(state)
        self._heldout = {name: account.as_json() for name, account in whole.by_source().items()}
        limit = trainer.limit_val_batches
        self._all_heldout = isinstance(limit, float) and limit == 1
        self._over = self._over or self._too_many_held_out()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, self.accounts())

    def settle(self) -> None:
        """Raises what the last epoch's end told; to be called when all has been saved."""
        if self._over:
            raise DataError(f"the model is saved, but {self._over}")

    def accounts(self) -> Accounts:
        """Counts of all processes, and of what a run that this one continues had counted; for all processes to call."""
        whole = Accounts()
        for state in (self._before, *from_all_processes(self._own.as_json())):
            whole.add(state)
        return whole

    def _too_many(self, accounts: Accounts, epoch: int, exactly: bool, split: str = "train") -> str | None:
        for name, account in accounts[epoch].items():
            lost = account.skipped.total()
            over = lost > self.max_skip_rate * account.seen
            if over and (exactly or is_certain(lost, account.seen, self.max_skip_rate)):
                where = f"{split} source {name!r}" + (f", epoch {epoch}" if split == "train" else "")
                return too_many(where, "skipped", account.skipped, account.seen, account.first, self.max_skip_rate)
        return None

    def _too_many_held_out(self) -> str | None:
        """As `_too_many`, of the last validation: exactly, if it went over all rows."""
        accounts = Accounts()
        accounts.add({"0": self._heldout})
        return self._too_many(accounts, 0, self._all_heldout, split="heldout")

    def state_dict(self) -> dict[str, Any]:
        """`accounts`, as plain values, the last validation's, and the epoch that was over last."""
        heldout = {"heldout": self._heldout, "all_heldout": self._all_heldout}
        return {"epochs": self.accounts().as_json(), "ended": self._ended, **heldout}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before, self._ended = state_dict["epochs"], state_dict["ended"]
        self._heldout, self._all_heldout = state_dict["heldout"], state_dict["all_heldout"]
        if self._ended is not None:
            before = Accounts()
            before.add(self._before)
            self._over = self._too_many(before, self._ended, exactly=True)
        self._over = self._over or self._too_many_held_out()

    def _write(self, trainer: Trainer, accounts: Accounts) -> None:
        """Write `ledger.json`: all rows, by source, by epoch and source, and what the readers made of the files."""
        if not trainer.is_global_zero:
            return
        sources = accounts.by_source()
        content = total(sources.values()).as_json()
        content |= {
            "sources": {name: account.as_json() for name, account in sources.items()},
            "epochs": accounts.as_json(),
        }
        if self._heldout:
            content["heldout"] = self._heldout
        if isinstance(data := getattr(trainer, "datamodule", None), MacawDataModule):
            content["read"] = [tally.as_json() for tally in data.ledger]
        path = Path(trainer.default_root_dir) / "ledger.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=2) + "\n")


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
        readings: dict[str, float] = {}
        for kind, health in self._found.items():
            figures = health | shares.get(kind, {})
            readings |= {f"health/{kind}/{name}": value for name, value in figures.items()}
            if figures.get("cosine", 0.0) > COLLAPSED and kind not in self._warned:
                self._warned.add(kind)
                rank_zero_warn(
                    f"soft tokens of different {kind} inputs have a cosine of {figures['cosine']:.4f}, expected below "
                    f"{COLLAPSED}: the language model can hardly tell them apart; docs/benchmarks.md compares aligners"
                )
        for logger in trainer.loggers if readings else ():
            # At once: `log` would hold them back until Lightning's next logging step.
            logger.log_metrics(readings, trainer.global_step)
        self._found = None


def _model(module: LightningModule) -> Macaw:
    assert isinstance(module, MacawModule)
    return module.model
