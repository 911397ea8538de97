"""What measuring modality use gives: the question types, the counts by condition, and the verdict on them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macaw_lit.errors import DataError
from macaw_lit.evaluation.answers import Answered, wilson

BAR = 0.90  # least accuracy with true media
CHANCE_MARGIN = 0.07  # largest distance from chance without a needed medium
OTHER_MARGIN = 0.03  # largest change without a medium that is not needed
_ROUNDING = 1e-9


@dataclass(frozen=True)
class QuestionType:
    """What is known of a question type: the media it needs, whether it decides, and a blind guesser's accuracy."""

    media: tuple[str, ...]
    gating: bool
    chance: float


@dataclass(frozen=True)
class TypeResult:
    """Right answers of one question type by condition. `absent` and `shuffled` hold every kind that its items carry.

    A kind is missing from `shuffled` where the items have too few different media of it to exchange.
    """

    kind: QuestionType
    n: int
    hits: int
    absent: Mapping[str, int] = field(default_factory=dict)
    shuffled: Mapping[str, int] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """The share of right answers with true media."""
        return self.share(self.hits)

    def share(self, hits: int) -> float:
        """The accuracy that `hits` right answers are."""
        return hits / self.n if self.n else 0.0

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against this type, in short; empty when it passes."""
        if not self.n:
            return ("no held-out items",)
        reasons = [] if self.accuracy >= BAR - _ROUNDING else [f"accuracy {self.accuracy:.2f} < {BAR:.2f}"]
        for word, by_kind in (("without", self.absent), ("shuffled", self.shuffled)):
            for kind in self.kind.media:
                if kind not in by_kind:
                    reasons.append(
                        f"no {kind} to remove" if word == "without" else f"too few different {kind}s to shuffle"
                    )
                elif abs(self.share(by_kind[kind]) - self.kind.chance) > CHANCE_MARGIN + _ROUNDING:
                    reasons.append(f"{word} {kind} {self.share(by_kind[kind]):.2f}, chance {self.kind.chance:.2f}")
            for kind in sorted(set(by_kind) - set(self.kind.media)):
                if abs(self.share(by_kind[kind]) - self.accuracy) > OTHER_MARGIN + _ROUNDING:
                    reasons.append(
                        f"{word} {kind} {self.share(by_kind[kind]):.2f}, not needed, true {self.accuracy:.2f}"
                    )
        return tuple(reasons)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against this type."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """The type's entry of `modality_use.json`; shares to four digits, intervals at 95 %."""

        def interval(hits: int) -> list[float]:
            return [round(bound, 4) for bound in wilson(hits, self.n)]

        entry: dict[str, Any] = {
            "media": list(self.kind.media),
            "gating": self.kind.gating,
            "n": self.n,
            "chance": self.kind.chance,
            "true": round(self.accuracy, 4),
            "true_ci": interval(self.hits),
        }
        for name, by_kind in (("absent", self.absent), ("shuffled", self.shuffled)):
            entry[name] = {kind: round(self.share(hits), 4) for kind, hits in by_kind.items()}
            entry[f"{name}_ci"] = {kind: interval(hits) for kind, hits in by_kind.items()}
        return entry | {"verdict": "pass" if self.passed else "fail", "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Report:
    """Results by question type, gating types first, and the answers given with true media."""

    types: Mapping[str, TypeResult]
    answered: tuple[Answered, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there are gating types and all of them pass."""
        gating = [result for result in self.types.values() if result.kind.gating]
        return bool(gating) and all(result.passed for result in gating)

    def to_json(self) -> dict[str, Any]:
        """The content of `modality_use.json`."""
        return {name: result.to_json() for name, result in self.types.items()}


def read_types(path: Path) -> dict[str, QuestionType]:
    """The question types of a `question_types.json`.

    Raises:
        DataError: the file cannot be read, or an entry lacks a field or holds a wrong one.
    """
    wanted = 'expected {"<type>": {"media": ["image"], "gating": true, "chance": 0.25}, ...}'
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); {wanted}; render the world again or correct the path"
        ) from error
    if not isinstance(table, dict):
        raise DataError(f"{path}: holds a {type(table).__name__}; {wanted}")
    types = {}
    for name, entry in table.items():
        match entry:
            case {"media": list(media), "gating": bool(gating), "chance": float() | int() as chance} if (
                0 <= chance <= 1
            ):
                types[name] = QuestionType(tuple(map(str, media)), gating, float(chance))
            case _:
                raise DataError(
                    f"{path}: type {name!r} is {entry!r}; {wanted} with chance from 0 to 1; correct the entry"
                )
    return types
