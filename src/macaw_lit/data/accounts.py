"""What became of the rows, as they were read and as they were trained on, and when too many cannot be used."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from macaw_lit.data.rows import in_words
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.types import Batch, Rejection, Sample

DOUBT = 3.0  # standard deviations


@dataclass
class Tally:
    """What a reader made of a source's rows: how many are usable, and how many it rejected for which cause."""

    split: str
    source: str
    usable: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: Rejection | None = None

    @property
    def rows(self) -> int:
        """All that were read."""
        return self.usable + self.rejected.total()

    def add(self, row: Sample | Rejection) -> None:
        """Books what a reader gave; a dialogue that was joined of several rows counts as these."""
        if isinstance(row, Rejection):
            self.rejected[row.cause] += 1
            self.first = self.first or row
        else:
            joined = row.meta.get("rows")
            self.usable += len(joined) if isinstance(joined, list) else 1

    def check(self, max_skip_rate: int | float) -> None:
        """Refuse a source that gave too little.

        Raises:
            DataError: no row is usable, or a greater share than `max_skip_rate` was rejected.
        """
        where = f"{self.split} source {self.source!r}"
        if not self.usable:
            why = f"{in_words(self.rejected)}, first at {self.first.locator}" if self.first else "it is empty"
            raise DataError(f"{where} has no usable row ({why}); check its files or remove it")
        if self.first and self.rejected.total() > max_skip_rate * self.rows:
            raise DataError(too_many(where, "rejected", self.rejected, self.rows, in_short(self.first), max_skip_rate))

    def as_json(self) -> dict[str, Any]:
        """Plain values; `first` only where rows were rejected."""
        plain = {"split": self.split, "source": self.source, "usable": self.usable, "rejected": dict(self.rejected)}
        return plain | ({"first": in_short(self.first)} if self.first else {})


@dataclass
class Account:
    """What became of one source's rows: seen = used + truncated + skipped.

    Attributes:
        used: trained on as they are.
        truncated: trained on with a response that was cut to fit `max_length`.
        skipped: cause → rows that another of the source stood in for.
        first: place and detail of the skipped row whose text sorts first: the same however processes shared the rows.
    """

    used: int = 0
    truncated: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: str = ""

    @property
    def seen(self) -> int:
        """All rows that were looked at."""
        return self.used + self.truncated + self.skipped.total()

    @property
    def trained(self) -> int:
        """Rows that were trained on."""
        return self.used + self.truncated

    def __iadd__(self, other: "Account") -> "Account":
        self.used += other.used
        self.truncated += other.truncated
        self.skipped.update(other.skipped)
        self.first = min(filter(None, (self.first, other.first)), default="")
        return self

    def as_json(self) -> dict[str, Any]:
        """Plain values; `first` only where rows were skipped."""
        counts = {"seen": self.seen, "used": self.used, "truncated": self.truncated, "skipped": dict(self.skipped)}
        return counts | ({"first": self.first} if self.first else {})


class Accounts(defaultdict[int, defaultdict[str, Account]]):
    """Epoch of the mixture → source → account."""

    def __init__(self) -> None:
        super().__init__(lambda: defaultdict(Account))

    def count(self, batch: Batch) -> None:
        """Books the rows of a batch, and those that they stand in for."""
        epoch = self[batch.epoch]
        for source in batch.sources:
            epoch[source].used += 1
        for source in batch.truncated:
            epoch[source].used -= 1
            epoch[source].truncated += 1
        for rejection in batch.skipped:
            epoch[rejection.source] += Account(skipped=Counter([rejection.cause]), first=in_short(rejection))

    def add(self, state: Mapping[str, Any]) -> None:
        """Adds what `as_json` gave."""
        for epoch, sources in state.items():
            for source, account in sources.items():
                skipped, first = Counter(account["skipped"]), account.get("first", "")
                self[int(epoch)][source] += Account(account["used"], account["truncated"], skipped, first)

    def as_json(self) -> dict[str, Any]:
        """Epoch, as a text → source → account, of plain values."""
        return {
            str(epoch): {source: account.as_json() for source, account in sorted(sources.items())}
            for epoch, sources in sorted(self.items())
        }

    def by_source(self) -> dict[str, Account]:
        """Source → account of all epochs."""
        whole: defaultdict[str, Account] = defaultdict(Account)
        for sources in self.values():
            for source, account in sources.items():
                whole[source] += account
        return dict(sorted(whole.items()))


def total(accounts: Iterable[Account]) -> Account:
    """All accounts as one."""
    whole = Account()
    for account in accounts:
        whole += account
    return whole


def in_short(rejection: Rejection) -> str:
    """Place and detail of a rejection, to be quoted in a line."""
    detail = " ".join(rejection.detail.split())[:240]
    return detail if detail.startswith(rejection.locator) else f"{rejection.locator}: {detail}"


def check_rate(max_skip_rate: int | float) -> None:
    """Refuse what is no share of rows.

    Raises:
        ConfigError: it is not between 0 and 1.
    """
    if not 0 <= max_skip_rate <= 1:
        raise ConfigError(f"max_skip_rate={max_skip_rate}; expected a share of rows from 0 to 1, such as 0.01")


def is_certain(lost: int, of: int, max_skip_rate: int | float) -> bool:
    """Whether so few rows tell already that a greater share than permitted is lost.

    True where a source that loses just the permitted share would, by the Poisson distribution's standard deviation,
    hardly ever lose so many; and never before one lost row was to be expected. With `max_skip_rate=0`, at the first.
    """
    expected = max_skip_rate * of
    return lost > 0 if not max_skip_rate else expected >= 1 and lost > expected + DOUBT * math.sqrt(expected)


def too_many(where: str, fate: str, lost: Counter[str], of: int, first: str, max_skip_rate: int | float) -> str:
    """The line that ends a run: how many rows of which source met what fate, an example, and what to do."""
    return (
        f"{where}: {lost.total()} of {of} rows were {fate} ({in_words(lost)}), expected at most "
        f"max_skip_rate={max_skip_rate:g} of them; the first: {first.rstrip('.')}; repair what python -m "
        f"macaw_lit.doctor shows, or raise data.max_skip_rate"
    )
