"""One run from captions to files: what each action of the command does, on plain typed settings."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.roots import Roots
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.generation.assemble import Assembled, assemble, check_shares
from macaw_lit.generation.backend import Backend
from macaw_lit.generation.batch import export_batch, import_batch
from macaw_lit.generation.budget import Budget, Price
from macaw_lit.generation.card import write_card
from macaw_lit.generation.filters import chosen, known
from macaw_lit.generation.journal import Journal
from macaw_lit.generation.records import Record, choose, read_records
from macaw_lit.generation.review import apply_sheet, read_sheet, write_sheet
from macaw_lit.generation.runner import Limits, Outcome, Runner
from macaw_lit.generation.similar import Wordings
from macaw_lit.generation.statistics import Statistics, statistics, write_statistics
from macaw_lit.generation.templates import Asking, Job
from macaw_lit.generation.writers import WRITERS, write_items
from macaw_lit.types import Rejection

CARD = "DATASET_CARD.md"


@dataclass(frozen=True)
class Captions:
    """Where records come from, and how many of them are used."""

    source: str
    path: Path
    media_root: Roots
    kind: str = "image"
    media: int | None = None
    seed: int = 0
    strict: bool = False

    def read(self) -> tuple[list[Record], Counter[str]]:
        """The chosen records, and rejected rows by cause.

        Raises:
            ConfigError: no such source or kind.
            DataError: the file cannot be read or holds nothing usable, or, if `strict`, a row that cannot be used.
        """
        records, rejected, first = [], Counter[str](), ""
        for row in read_records(self.source, self.path, self.media_root, self.kind):
            if isinstance(row, Rejection):
                first = first or f"{row.locator}: {row.cause}: {row.detail}"
                if self.strict:
                    raise DataError(f"{first}; repair the row, or give strict=false to count such rows")
                rejected[row.cause] += 1
            elif row.texts or row.transcript:
                records.append(row)
        if not records:
            raise DataError(f"{self.path}: no usable captions, the first fault is {first or 'an empty file'}")
        return choose(records, self.media, self.seed), rejected


@dataclass(frozen=True)
class Finish:
    """What happens to answers on their way into files; made, and so refused, before anything is asked and paid for.

    Raises:
        ConfigError: a rule or a format cannot work, or there is no such sheet.
        DataError: the sheet cannot be read, or holds what is no verdict.
    """

    filters: Sequence[str] = ("length", "leak", "echo")
    near_duplicate: float | None = 0.7
    most_repeats: int | None = None
    alike: float | None = None
    least_grounded: float | None = None
    formats: Sequence[str] = ("macaw", "llava", "messages")
    sheet: Path | None = None

    def __post_init__(self) -> None:
        chosen(self.filters)
        known("formats", self.formats, WRITERS)
        check_shares(near_duplicate=self.near_duplicate, least_grounded=self.least_grounded)
        Wordings(self.alike)
        if self.most_repeats is not None and self.most_repeats < 1:
            raise ConfigError(f"most_repeats={self.most_repeats}: expected a whole number of at least 1, or null")
        if self.sheet is not None and not self.sheet.is_file():
            raise ConfigError(f"sheet={self.sheet}: no such file; action=review writes one to be judged")
        if self.sheet is not None:
            read_sheet(self.sheet)


@dataclass(frozen=True)
class Estimate:
    """What is still to be asked: requests without repetitions, and the most that they may be billed."""

    requests: int
    tokens_in: int
    tokens_out: int
    usd: float


@dataclass
class Project:
    """A folder with a journal, and what is asked about which records.

    Args:
        jobs: one per record, in their order.
        price: of tokens; needed where the budget limits USD.
    """

    folder: Path
    jobs: list[Job]
    asking: Asking
    budget: Budget
    price: Price
    limits: Limits = field(default_factory=Limits)
    finish: Finish = field(default_factory=Finish)

    @classmethod
    def of(cls, folder: Path, records: Sequence[Record], asking: Asking, budget: Budget, price: Price) -> "Project":
        """The project of records that are all asked about in one way."""
        return cls(folder, [asking.job(record) for record in records], asking, budget, price)

    def journal(self) -> Journal:
        """The journal of the folder, open for writing."""
        return Journal(self.folder / "journal.jsonl", self.budget)

    def estimate(self) -> Estimate:
        """What a run would ask, as if every answer were good and as long as may be."""
        with self.journal() as journal:
            left = [job for job in self.jobs if not journal.history(job.id).settled(self.limits.re_asks)]
        bounds = [job.request().bound() for job in left]
        tokens = sum(bound[0] for bound in bounds), sum(bound[1] for bound in bounds)
        return Estimate(len(left), *tokens, self.price.usd(*tokens))

    async def run(self, backend: Backend, on_settled: Callable[[], None] = lambda: None) -> Outcome:
        """Ask about all records that are not settled (`Runner.run`)."""
        with self.journal() as journal:
            return await Runner(backend, journal, self.limits, self.price, on_settled).run(self.jobs)

    def build(self) -> tuple[list[Path], Statistics]:
        """Write the data set, its statistics and its card from the journal alone: equal journals, equal bytes."""
        with self.journal() as journal:
            assembled = self._assemble(journal)
        reviewed = apply_sheet(assembled.items, self.finish.sheet)
        found = statistics(assembled, reviewed, self.budget.spent)
        written = write_items(reviewed.items, self.folder, self.finish.formats)
        write_statistics(found, self.folder)
        sources = {job.record.source for job in self.jobs}
        write_card(self.folder / CARD, found, reviewed.items, sources, self.asking, self._rules())
        return [*written, self.folder / CARD], found

    def write_sheet(self, path: Path, count: int | None, seed: int) -> int:
        """Write a review sheet; returns its rows."""
        with self.journal() as journal:
            items = self._assemble(journal).items
        if not items:
            raise ConfigError(f"{self.folder} has nothing to review: generate with action=run first")
        return write_sheet(items, path, count, seed)

    def export_batch(self, path: Path, limit_field: str) -> int:
        """Write the requests that are left as a batch; returns how many."""
        with self.journal() as journal:
            return export_batch(journal, self.jobs, path, self.price, self.limits.re_asks, limit_field)

    def import_batch(self, path: Path) -> Counter[str]:
        """Journal a batch's answers; returns its lines by what they were."""
        with self.journal() as journal:
            return import_batch(journal, self.jobs, path, self.price, self.limits.re_asks)

    def _assemble(self, journal: Journal) -> Assembled:
        return assemble(journal, self.jobs, **self._rules())

    def _rules(self) -> dict[str, Any]:
        """What `assemble` is told."""
        names = ("filters", "near_duplicate", "most_repeats", "alike", "least_grounded")
        return {name: getattr(self.finish, name) for name in names}
