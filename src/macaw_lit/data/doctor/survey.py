"""Rows and verdicts into a report: what training would skip, what is odd, per source and cause."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from macaw_lit.data.doctor.examine import Medium, Verdict
from macaw_lit.data.doctor.texts import TextRuler
from macaw_lit.errors import DataError, SampleError
from macaw_lit.types import Place, Rejection, Sample, Slice

Readers = Mapping[str, Mapping[str, Callable[[], Iterable[Sample | Rejection]]]]
"""Split (`train`, `heldout`) → source → reader."""

ROW_ODDITIES = {
    "duplicate": "media, question and answer stand in the split before",
    "same_question": "media and question stand in the split before, with another answer",
    "in_train_too": "a held-out row on a medium that is trained on",
    "text_maybe_too_long": "by the rule of thumb no response fits; give a tokenizer to be sure",
    "response_cut": "the text is longer than max_length: the response is cut",
}
"""What is worth a look in rows that can be used."""

LISTED = 1000  # odd findings of one cause that a report lists; all are counted


@dataclass
class Tally:
    """What became of one source's rows: rows = usable + rejected + unusable; an odd row is usable."""

    split: str
    source: str
    rows: int = 0
    usable: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Finding:
    """One thing found, in a row or in a medium.

    Attributes:
        level: `rejected` by the reader, `unusable` in training, or `odd`.
        place: locator of a rejected row, uid of another, or path of a medium.
        kind: of a medium; empty for a row.
        rows: how many rows it concerns.
    """

    level: str
    cause: str
    split: str
    source: str
    place: Place
    detail: str
    kind: str = ""
    rows: int = 1


@dataclass
class Report:
    """All tallies and findings of a survey."""

    tallies: list[Tally]
    findings: list[Finding]
    media: int

    @property
    def rows(self) -> int:
        """Rows of all sources."""
        return sum(tally.rows for tally in self.tallies)

    @property
    def lost(self) -> int:
        """Rows that cannot be used."""
        return sum(tally.rows - tally.usable for tally in self.tallies)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        tallies = [
            {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(tally).items()}
            for tally in self.tallies
        ]
        findings = [vars(finding) | {"place": str(finding.place)} for finding in self.findings]
        return {"rows": self.rows, "lost": self.lost, "media": self.media, "sources": tallies, "findings": findings}


@dataclass(slots=True)
class _Row:
    """What is remembered of a sample once it was read."""

    tally: Tally
    uid: str
    media: tuple[Medium, ...]
    cause: str | None
    detail: str
    odd: tuple[str, ...]


def survey(
    readers: Readers, ruler: TextRuler, examine: Callable[[Iterable[Medium]], Mapping[Medium, Verdict]]
) -> Report:
    """Reads every source, has every medium examined once, and judges every row as training would.

    A data file that cannot be read at all is one finding, and the other sources go on. A row counts under one cause:
    that of its text, else that of its first unusable medium.
    """
    report = Report([], [], 0)
    rows: list[_Row] = []
    for split, sources in readers.items():
        seen: dict[bytes, bytes] = {}
        for name, read in sources.items():
            tally = Tally(split, name)
            report.tallies.append(tally)
            rows += _read(read, tally, report, ruler, seen)
    media = dict.fromkeys(medium for row in rows for medium in row.media)
    report.media = len(media)
    verdicts = examine(media)
    trained = {_content(medium.path) for row in rows if row.tally.split == "train" for medium in row.media}
    for row in rows:
        _judge(row, verdicts, trained, report)
    report.findings += _media_findings(rows, verdicts)
    report.findings = _bounded(report.findings)
    return report


def _read(
    read: Callable[[], Iterable[Sample | Rejection]],
    tally: Tally,
    report: Report,
    ruler: TextRuler,
    seen: dict[bytes, bytes],
) -> Iterator[_Row]:
    """The samples of a source, rejections counted; `seen` maps the question of each to its answer."""

    def reject(cause: str, place: str, detail: str) -> None:
        tally.rows += 1
        tally.rejected[cause] += 1
        report.findings.append(Finding("rejected", cause, tally.split, tally.source, place, detail))

    try:
        for row in read():
            if isinstance(row, Rejection):
                reject(row.cause, row.locator, row.detail)
            else:
                tally.rows += 1
                yield _remember(row, tally, ruler, seen)
    except DataError as error:
        reject("file_unreadable", tally.source, str(error))


def _remember(sample: Sample, tally: Tally, ruler: TextRuler, seen: dict[bytes, bytes]) -> _Row:
    media = tuple(Medium.of(ref) for turn in sample.turns for ref in turn.media)
    cause, detail, odd = None, "", []
    try:
        fit = ruler(sample)
        if fit.too_long and fit.certain:
            cause, detail = "text_too_long", f"{fit.prompt} tokens of prompt; at most {fit.room - 1} leave room"
        elif fit.too_long or fit.cut:
            odd.append("response_cut" if fit.cut else "text_maybe_too_long")
    except SampleError as error:
        cause, detail = error.cause, str(error)
    named = [(medium.kind, _content(medium.path)) for medium in media]
    asked = _digest(named, sample.meta.get("input"), *(turn.text for turn in sample.turns if turn.role != "assistant"))
    answered = _digest(*(turn.text for turn in sample.turns if turn.role == "assistant"))
    if asked in seen:
        odd.append("duplicate" if seen[asked] == answered else "same_question")
    seen.setdefault(asked, answered)
    return _Row(tally, sample.uid, media, cause, detail, tuple(odd))


def _digest(*parts: object) -> bytes:
    """Equal for texts that differ in case and white space only."""
    plain = "\0".join(" ".join(str(part).casefold().split()) for part in parts)
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _judge(row: _Row, verdicts: Mapping[Medium, Verdict], trained: set[str], report: Report) -> None:
    tally = row.tally
    spoilt = next((verdicts[medium].cause for medium in row.media if verdicts[medium].cause), None)
    cause = row.cause or spoilt
    if cause:
        tally.unusable[cause] += 1
        if row.cause:
            report.findings.append(Finding("unusable", cause, tally.split, tally.source, row.uid, row.detail))
        return
    tally.usable += 1
    leaks = tally.split != "train" and not trained.isdisjoint(_content(medium.path) for medium in row.media)
    for odd in (*row.odd, *(("in_train_too",) if leaks else ())):
        tally.odd[odd] += 1
        report.findings.append(Finding("odd", odd, tally.split, tally.source, row.uid, ROW_ODDITIES[odd]))
    tally.odd.update({odd for medium in row.media for odd in verdicts[medium].odd})


def _content(path: Place) -> str:
    """What tells a medium from another: the checksum within a tar or in a row, else the path."""
    return path.sha256 if isinstance(path, Slice) else str(path)


def _media_findings(rows: Iterable[_Row], verdicts: Mapping[Medium, Verdict]) -> Iterator[Finding]:
    """One finding per medium and cause, with the split and source that name it first."""
    named = Counter(medium for row in rows for medium in row.media)
    first: dict[Medium, Tally] = {}
    for row in rows:
        for medium in row.media:
            first.setdefault(medium, row.tally)
    for medium, tally in first.items():
        verdict, where = verdicts[medium], (tally.split, tally.source, medium.path)
        if verdict.cause:
            yield Finding("unusable", verdict.cause, *where, verdict.detail, medium.kind, named[medium])
        for odd in verdict.odd:
            yield Finding("odd", odd, *where, "", medium.kind, named[medium])


def _bounded(findings: Iterable[Finding]) -> list[Finding]:
    """All that cost rows, then the first of each oddity."""
    kept: Counter[str] = Counter()
    lost, odd = [], []
    for finding in findings:
        if finding.level != "odd":
            lost.append(finding)
        elif kept[finding.cause] < LISTED:
            kept[finding.cause] += 1
            odd.append(finding)
    return lost + odd
