"""People's part: a sheet of items goes out to be judged, and the judgements come back in."""

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from macaw_lit.data.sources.files import csv_rows
from macaw_lit.data.sources.rows import clean
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.evaluation.answers import wilson
from macaw_lit.generation.assemble import Item
from macaw_lit.generation.writers import write_text

COLUMNS = ("uid", "kind", "medium", "captions", "type", "instruction", "response", "verdict", "corrected_response")
VERDICTS = ("accept", "reject", "")


@dataclass(frozen=True)
class Reviewed:
    """Items after review: counts of pairs by verdict, and of questions that nobody answered."""

    items: list[Item]
    accepted: int = 0
    corrected: int = 0
    rejected: int = 0
    unanswered: int = 0

    @property
    def acceptance(self) -> tuple[float, float, float] | None:
        """Share of judged pairs that were accepted as they stood, with its 95 % interval; None where none was."""
        judged = self.accepted + self.corrected + self.rejected
        return (self.accepted / judged, *wilson(self.accepted, judged)) if judged else None


def write_sheet(items: Sequence[Item], path: Path, count: int | None = None, seed: int = 0) -> int:
    """Write a CSV with one row per pair of `count` items (None: all), every type in turn; returns the rows.

    `verdict` and `corrected_response` are left empty; so is the response of a question that people are to answer.

    Raises:
        ConfigError: the file is there already, perhaps with someone's judgements.
    """
    if path.exists():
        raise ConfigError(f"{path} exists and may hold judgements; move it away or name another sheet")
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(COLUMNS)
    rows = 0
    for item in _stratified(items, count, seed):
        record = item.record
        texts = " | ".join((*record.texts, *filter(None, [record.transcript])))
        for turn, pair in enumerate(item.pairs):
            cells = (f"{item.uid}/{turn}", record.kind, record.id, texts, pair.type, pair.instruction, pair.response)
            table.writerow((*cells, "", ""))
            rows += 1
    write_text(path, buffer.getvalue())
    return rows


def apply_sheet(items: Sequence[Item], path: Path | None) -> Reviewed:
    """The items with a sheet's judgements: rejected pairs end their dialogue, corrected responses take their place.

    A correction counts whatever the verdict beside it. Pairs that nobody judged stay as they are, but a question
    without an answer cannot.

    Raises:
        DataError: the sheet cannot be read, has an unknown verdict, or names a pair that is not there or twice.
    """
    judged = {} if path is None else _judgements(path, items)
    counts = dict.fromkeys(("accepted", "corrected", "rejected", "unanswered"), 0)
    kept = []
    for item in items:
        pairs = []
        for turn, pair in enumerate(item.pairs):
            verdict, correction = judged.get(f"{item.uid}/{turn}", ("", ""))
            if correction:
                counts["corrected"] += 1
                pair = replace(pair, response=correction)
            elif verdict:
                counts["accepted" if verdict == "accept" else "rejected"] += 1
            if verdict == "reject" and not correction:
                break  # later turns may refer to it
            if not pair.response:
                counts["unanswered"] += 1
                break
            pairs.append(pair)
        if pairs:
            seen = any(f"{item.uid}/{turn}" in judged for turn in range(len(item.pairs)))
            kept.append(replace(item, pairs=tuple(pairs), provenance={**item.provenance, "reviewed": seen}))
    return Reviewed(kept, **counts)


def read_sheet(path: Path) -> dict[str, tuple[str, str, str]]:
    """What a sheet says: uid → where its row stands, verdict and correction.

    Raises:
        DataError: the sheet cannot be read, lacks a column, has an unknown verdict, or names a pair twice.
    """
    found: dict[str, tuple[str, str, str]] = {}
    for locator, row in csv_rows(path, ("uid", "verdict", "corrected_response")):
        uid, verdict = (row["uid"] or "").strip(), (row["verdict"] or "").strip().lower()
        correction = clean(row["corrected_response"] or "")
        if verdict not in VERDICTS:
            raise DataError(
                f"{locator}: verdict {verdict[:40]!r}, expected accept, reject or nothing; correct the cell"
            )
        if uid in found:
            raise DataError(f"{locator}: uid {uid[:60]!r} stands twice; use the sheet that these settings wrote")
        found[uid] = (locator, verdict, correction)
    return found


def _judgements(path: Path, items: Sequence[Item]) -> dict[str, tuple[str, str]]:
    known = {f"{item.uid}/{turn}" for item in items for turn in range(len(item.pairs))}
    rows = read_sheet(path)
    for uid, (locator, *_) in rows.items():
        if uid not in known:
            raise DataError(
                f"{locator}: uid {uid[:60]!r} names no pair of this data; use the sheet that these settings wrote"
            )
    return {uid: (verdict, correction) for uid, (_, verdict, correction) in rows.items() if verdict or correction}


def _stratified(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """`count` items in their own order, drawn so that the types of their first questions are as even as can be."""
    if count is None or count >= len(items):
        return list(items)
    rng, groups = random.Random(seed), dict[str, list[int]]()
    for place, item in enumerate(items):
        groups.setdefault(item.pairs[0].type, []).append(place)
    for group in groups.values():
        rng.shuffle(group)
    picked: list[int] = []
    while len(picked) < count:
        for group in groups.values():
            if group and len(picked) < count:
                picked.append(group.pop())
    return [items[place] for place in sorted(picked)]
