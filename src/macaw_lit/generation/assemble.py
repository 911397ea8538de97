"""Journal and records into items: a pure function, so that the same journal always gives the same data."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from macaw_lit.errors import ConfigError
from macaw_lit.generation.filters import chosen, rouge_l, words
from macaw_lit.generation.ground import grounded
from macaw_lit.generation.journal import Answer, Journal
from macaw_lit.generation.parse import Dialogue, parse
from macaw_lit.generation.records import Record
from macaw_lit.generation.similar import Wordings
from macaw_lit.generation.templates import Job


@dataclass(frozen=True)
class Item:
    """One dialogue about one medium, with all that is known of where it came from."""

    uid: str
    record: Record
    pairs: Dialogue
    provenance: dict[str, Any] = field(repr=False)


@dataclass
class Assembled:
    """The items, and how they came to be that many.

    Attributes:
        stages: stage → dialogues that are left after it, from `asked` on.
        media: all, answered, and those whose answer had a fault to the last, by its cause.
    """

    items: list[Item]
    stages: dict[str, int]
    media: Counter[str]


def assemble(
    journal: Journal,
    jobs: Iterable[Job],
    filters: Sequence[str] = ("length", "leak", "echo"),
    near_duplicate: float | None = 0.7,
    most_repeats: int | None = None,
    alike: float | None = None,
    least_grounded: float | None = None,
) -> Assembled:
    """The dialogues of all answered jobs, without those that a filter or a likeness leaves out.

    Args:
        filters: names, applied in order.
        near_duplicate: ROUGE-L F1 of question and answer together, above which a dialogue repeats an earlier one on the
            same medium; None keeps all but equal questions.
        most_repeats: how often one wording of a question may stand in the whole; None sets no limit.
        alike: Jaccard of word pairs from which two questions are one wording (`similar.Wordings`); None: equal words.
        least_grounded: share of a response's content words that must stand in the texts (`ground.groundedness`).

    Raises:
        ConfigError: an unknown filter, or a likeness that is no share.
    """
    check_shares(near_duplicate=near_duplicate, least_grounded=least_grounded)
    rules = chosen(filters)
    stages = dict.fromkeys(["asked", "parsed", *rules, "grounded", "duplicate", "near_duplicate", "repeated"], 0)
    media: Counter[str] = Counter(media=0, answered=0)
    wordings, repeats = Wordings(alike), Counter[int]()
    items: list[Item] = []
    for job in jobs:
        media["media"] += 1
        answers = journal.jobs[job.id].answers if job.id in journal.jobs else []
        if not answers:
            continue
        media["answered"] += 1
        answer, dialogues = _best(job, answers)
        if answer.fault is not None:
            media[answer.fault] += 1
        stages["asked"] += job.asking.template.pairs
        stages["parsed"] += len(dialogues)
        left = list(enumerate(dialogues))
        for name, rule in rules.items():
            left = [(number, dialogue) for number, dialogue in left if not any(map(rule, dialogue))]
            stages[name] += len(left)
        left = [(number, dialogue) for number, dialogue in left if grounded(dialogue, job.record, least_grounded)]
        stages["grounded"] += len(left)
        for stage, limit in (("duplicate", None), ("near_duplicate", near_duplicate)):
            left = _unlike(left, limit)
            stages[stage] += len(left)
        for number, dialogue in left:
            if most_repeats is not None:
                wording = wordings.place(_question(dialogue))
                repeats[wording] += 1
            if most_repeats is None or repeats[wording] <= most_repeats:
                uid = f"{job.id}/{number}"
                items.append(Item(uid, job.record, dialogue, _provenance(job, answer, filters)))
    stages["repeated"] = len(items)
    return Assembled(items, stages, media)


def check_shares(**shares: float | None) -> None:
    """Refuse what is no share.

    Raises:
        ConfigError: one is given, and not above 0 and up to 1.
    """
    for name, share in shares.items():
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"{name}={share}: expected a share above 0 and up to 1, or null")


def _best(job: Job, answers: Sequence[Answer]) -> tuple[Answer, list[Dialogue]]:
    """The good answer, or of those that were asked again the one with the most complete dialogues."""
    template = job.asking.template
    parsed = [(answer, parse(template, answer.completion)[0][: template.pairs]) for answer in answers]
    return max(parsed, key=lambda each: (each[0].fault is None, len(each[1])))


def _question(dialogue: Dialogue) -> tuple[str, ...]:
    return tuple(word for pair in dialogue for word in words(pair.instruction))


def _unlike(dialogues: list[tuple[int, Dialogue]], likeness: float | None) -> list[tuple[int, Dialogue]]:
    """Those that no earlier one is like: equal in all questions with None, else above that ROUGE-L."""
    kept: list[tuple[int, Dialogue]] = []
    seen: list[tuple[str, ...]] = []
    for number, dialogue in dialogues:
        text = _question(dialogue)
        if likeness is not None:
            text = tuple(word for pair in dialogue for word in words(f"{pair.instruction} {pair.response}"))
        alike = text in seen if likeness is None else any(rouge_l(text, other) > likeness for other in seen)
        if not alike:
            kept.append((number, dialogue))
            seen.append(text)
    return kept


def _provenance(job: Job, answer: Answer, filters: Sequence[str]) -> dict[str, Any]:
    asking = job.asking
    return {
        "source": job.record.source,
        "refs": list(job.record.refs),
        "grounded_in": "captions",
        "template": asking.template.name,
        "template_digest": asking.template.digest,
        "model": answer.completion.model or asking.model,
        "temperature": asking.temperature,
        "seed": asking.seed,
        "job": job.id,
        "filters": list(filters),
        "created": answer.time,
    }
