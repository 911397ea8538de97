"""Sources in, batches out: the LightningDataModule."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Sampler

from macaw_lit.data.accounts import Tally, check_rate
from macaw_lit.data.collate import Collator
from macaw_lit.data.mix import Draw, MixtureSampler, counts_of
from macaw_lit.data.preprocess import Preprocessor, Tokenizer
from macaw_lit.data.rows import Loader, Rows, in_words
from macaw_lit.data.steps import StepLoader
from macaw_lit.errors import ConfigError
from macaw_lit.types import Example, MediaSpec, Rejection, Sample


@dataclass(frozen=True)
class Source:
    """A reader and its share: `count` rows per epoch, None for all. Of a held-out source always the same ones.

    A source to train on may have a `weight` instead: a share of the data module's `rows_per_epoch`.
    """

    read: Callable[[], Iterator[Sample | Rejection]]
    count: int | None = None
    weight: int | float | None = None


class MacawDataModule(LightningDataModule):
    """Reads the sources once, mixes them, and goes on at the exact sample after a resume.

    The tokenizer and the specs belong to the model, which is known only at wiring: call `attach` before a loader
    is asked for. Order and content of batches do not depend on `num_workers`. Held-out rows come in file order.

    Args:
        train: name → source to train on.
        heldout: name → source to validate on.
        preprocessor: makes a `Preprocessor` from `tokenizer` and `specs`; settings are bound beforehand.
        batch_size: rows per process and micro-step.
        num_workers: processes that decode media; 0 decodes in the main process.
        seed: of the mixture.
        repeat: sources smaller than their count are repeated by whole passes.
        pin_memory: batches arrive in page-locked memory, for GPUs.
        rows_per_epoch: dealt to the sources by their weights, if they have weights.
        max_skip_rate: the greatest share of a source's rows that its reader may reject, from 0 to 1. What proves
            unusable in training is the affair of `training.callbacks.Ledger`.
        pack_rows: a training batch's samples share rows of at most the preprocessor's `max_length`, where that takes
            fewer positions; which samples a batch and a step hold does not change. Held-out rows are never packed.

    Raises:
        ConfigError: counts, weights or `max_skip_rate` cannot work.
    """

    def __init__(
        self,
        train: Mapping[str, Source],
        heldout: Mapping[str, Source] | None = None,
        preprocessor: Callable[..., Preprocessor] = Preprocessor,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        repeat: bool = False,
        pin_memory: bool = False,
        rows_per_epoch: int | None = None,
        max_skip_rate: int | float = 0.01,
        pack_rows: bool = False,
    ) -> None:
        super().__init__()
        check_rate(max_skip_rate)
        shares = {name: (source.count, source.weight) for name, source in train.items()}
        self.counts = counts_of(shares, rows_per_epoch)
        if weighted := [name for name, source in (heldout or {}).items() if source.weight is not None]:
            raise ConfigError(
                f"held-out source {weighted[0]!r} has a weight; weights deal out training rows, give a count"
            )
        self.max_skip_rate = max_skip_rate
        self.sources: dict[str, dict[str, Source]] = {"train": dict(train), "heldout": dict(heldout or {})}
        self.samples: dict[str, dict[str, list[Sample]]] = {}
        self.ledger: list[Tally] = []
        self.make_preprocessor = preprocessor
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.repeat = repeat
        self.pin_memory = pin_memory
        self.pack_rows = pack_rows
        self._preprocess: Preprocessor | None = None
        self._sampler: _TrainedMixture | None = None
        self._resume: dict[str, Any] | None = None

    def attach(self, tokenizer: Tokenizer, specs: Mapping[str, MediaSpec]) -> Preprocessor:
        """Fits the data to a model, and returns the preprocessor that prediction shares."""
        self._preprocess = self.make_preprocessor(tokenizer=tokenizer, specs=specs)
        return self._preprocess

    @property
    def preprocess(self) -> Preprocessor:
        """The preprocessor that `attach` made."""
        if self._preprocess is None:
            raise ConfigError("no tokenizer attached; call datamodule.attach(tokenizer, specs) before the loaders")
        return self._preprocess

    def setup(self, stage: str | None = None) -> None:
        """Reads what the stage needs and has not been read; `ledger` says what became of the rows.

        Raises:
            DataError: a file cannot be read at all, or a source has no usable row or too many that are rejected.
        """
        self._resume = None  # restored after this hook, also by a validation, which is not to move a later training
        for split in ("train", "heldout") if stage in (None, "fit") else ("heldout",):
            if split not in self.samples:
                self.samples[split] = {name: self._read(split, name) for name in self.sources[split]}

    def _read(self, split: str, name: str) -> list[Sample]:
        tally = Tally(split, name)
        samples = []
        for row in self.sources[split][name].read():
            tally.add(row)
            if isinstance(row, Sample):
                samples.append(row)
        tally.check(self.max_skip_rate)
        self.ledger.append(tally)
        count = self.sources[split][name].count
        if split == "train" or count is None:
            return samples
        return [samples[row] for row in sorted(MixtureSampler([len(samples)], [count], self.seed).order(0))]

    def table(self) -> list[tuple[str, str, int, int, str]]:
        """Per source: split, name, usable rows, rejected rows, and the causes with their counts."""
        return [
            (tally.split, tally.source, tally.usable, tally.rejected.total(), in_words(tally.rejected))
            for tally in self.ledger
        ]

    def train_dataloader(self) -> DataLoader[Example]:
        """Batches of the mixture, padded on the right or packed.

        Raises:
            ConfigError: there are more processes than rows, or a checkpoint was made with other data.
        """
        lengths = [len(samples) for samples in self.samples["train"].values()]
        mixture = MixtureSampler(lengths, self.counts, self.seed, self.repeat, *self._rank())
        if not mixture.total:
            raise ConfigError(
                f"trainer.devices × trainer.num_nodes={mixture.world} processes for {sum(mixture.sizes)} rows in all: "
                "each needs one; take fewer processes, or more rows"
            )
        if not self.trainer:
            return self._loader("train", mixture)
        self._sampler = _TrainedMixture(mixture, self.trainer, self.batch_size, self._resume_place)
        self._resume_place()  # refuses other data before training begins, where the checkpoint has been read by now
        return self._loader("train", self._sampler, partial(StepLoader, batches_of_step=self._sampler.batches_of_step))

    def val_dataloader(self) -> DataLoader[Example] | list[Any]:
        """Batches of the held-out rows in file order; `world - 1` at most are left out. An empty list without any."""
        if not self.sources["heldout"]:
            return []
        rank, world = self._rank()
        rows = sum(len(samples) for samples in self.samples["heldout"].values())
        return self._loader("heldout", range(rank, rows - rows % world, world))

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: str, sampler: Any, make: Callable[..., Loader] = Loader) -> DataLoader[Example]:
        row_length = self.preprocess.max_length if self.pack_rows and split == "train" else None
        return make(
            Rows(self.samples[split], self.preprocess),
            Collator(self.preprocess.pad, self.preprocess.specs, "right", row_length),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
        )

    def state_dict(self) -> dict[str, Any]:
        """The place in the mixture, in positions over all ranks, and what its order depends on."""
        if self._sampler is None:
            return {}
        epoch, position = self._sampler.place()
        return {"epoch": epoch, "position": position, "mixture": self._mixture()}

    def _mixture(self) -> dict[str, Any]:
        """What the order of rows depends on, the same for any number of processes: of a source rows, share, passes."""
        assert self._sampler is not None
        mixture = self._sampler.mixture
        shares = zip(mixture.lengths, mixture.sizes, mixture.passes, strict=True)
        return {"seed": self.seed} | {
            f"source {name}": list(share) for name, share in zip(self.sources["train"], shares, strict=True)
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next training loader go on where the state was saved."""
        self._resume = state_dict or None

    def _resume_place(self) -> tuple[int, int] | None:
        """Epoch and position of the checkpoint that training goes on from, if there is one."""
        if self._resume is None or self._sampler is None:
            return None
        before, now = self._resume["mixture"], self._mixture()
        for name in {**before, **now}:  # in this order: the order of sources counts
            if before.get(name) != now.get(name):
                raise ConfigError(
                    f"the checkpoint was made with other data: {name} was {_in_words(before.get(name))}, now is "
                    f"{_in_words(now.get(name))}; restore it, or start anew in another folder"
                )
        if list(before) != list(now):
            raise ConfigError(f"the checkpoint was made with sources in another order: {list(before)[1:]}; restore it")
        return self._resume["epoch"], self._resume["position"]


def _in_words(what: Any) -> str:
    """A seed, or a source's part of the mixture; None for a source that is not there."""
    if not isinstance(what, list):
        return "absent" if what is None else str(what)
    rows, share, passes = what
    return f"{rows} rows, {share} an epoch, {passes} times"


class _TrainedMixture(Sampler[Draw]):
    """A mixture that goes to its next epoch once the trainer has processed batches of the present one.

    Lightning's own count of epochs is no guide: it runs ahead when `max_steps` ends a run within an epoch, and when a
    run without `max_epochs` resumes at the end of one.

    Args:
        resume: epoch and position to begin at, or None; asked when training begins, because loaders may be made before
            Lightning reads its checkpoint, to count steps.
    """

    def __init__(
        self,
        mixture: MixtureSampler,
        trainer: Trainer,
        batch_size: int,
        resume: Callable[[], tuple[int, int] | None],
    ) -> None:
        self.mixture = mixture
        self.trainer = trainer
        self.step = batch_size * mixture.world  # positions of a batch over all ranks
        self.resume = resume
        self.begun = False
        self.before = self._processed()
        mixture.set_epoch(trainer.fit_loop.epoch_progress.state_dict()["current"]["processed"])

    def __len__(self) -> int:
        return len(self.mixture)

    def __iter__(self) -> Iterator[Draw]:
        return iter(self.mixture)

    def set_epoch(self, epoch: int) -> None:
        processed = self._processed()
        if not self.begun:
            self.begun = True
            if place := self.resume():
                self.mixture.epoch, self.mixture.position = place
        elif processed > self.before:
            self.mixture.set_epoch(self.mixture.epoch + 1)
        self.before = processed

    def place(self) -> tuple[int, int]:
        """Epoch and position of the first row that the trainer has not processed."""
        position = self.mixture.position + (self._processed() - self.before) * self.step
        if position >= min(self.mixture.total, self.trainer.num_training_batches * self.step):
            return self.mixture.epoch + 1, 0
        return self.mixture.epoch, position

    def batches_of_step(self) -> int:
        """Batches from the trainer's next one to the end of its optimizer step, or of the epoch."""
        ready, steps = self.trainer.fit_loop.epoch_loop.batch_idx + 1, self.trainer.accumulate_grad_batches
        return max(1, int(min(steps - ready % steps, self.trainer.num_training_batches - ready)))

    def _processed(self) -> int:
        total: int = self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]["processed"]
        return total
