"""Measures which media a model uses: accuracy per question type with true, absent and shuffled media, and a verdict."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from macaw_lit.errors import DataError
from macaw_lit.evaluation.answers import Answer, Answered, exact_match, input_of, question_of
from macaw_lit.evaluation.conditions import absent, draw, gold_of, kinds_of, shuffled
from macaw_lit.evaluation.results import QuestionType, Report, TypeResult
from macaw_lit.types import Sample, Turn

Progress = Callable[[int, int], None]
"""Called with the questions answered so far and their number."""

Variant = tuple[str, str]  # ("true", ""), ("absent", kind) or ("shuffled", kind)
TRUE: Variant = ("true", "")

Content = tuple[tuple[Turn, ...], str]  # all that an answer can depend on


def measure(
    samples: Sequence[Sample],
    types: Mapping[str, QuestionType],
    answer: Answer,
    n: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
    batch_size: int = 64,
) -> Report:
    """Asks every question with true, absent and shuffled media and counts the right answers.

    Args:
        samples: held-out samples whose last turn is the gold response and whose `meta["type"]` names their type;
            samples without a type are no questions and are left out.
        answer: called with at most `batch_size` questions that carry the same kinds of media; never the same twice.
        n: the most items of a type.

    Raises:
        DataError: a sample has no gold response, or a type that the table lacks.
    """
    by_type: dict[str, list[Sample]] = {name: [] for name in sorted(types, key=lambda name: not types[name].gating)}
    for sample in samples:
        name = sample.meta.get("type")
        if name is None:
            continue
        if name not in by_type:
            known = ", ".join(types) or "none"
            raise DataError(
                f"{sample.uid}: question type {name!r} is not in the table ({known}); add it or drop the row"
            )
        by_type[name].append(sample)
    items = {name: draw(group, n, random.Random(f"{seed}/{name}")) for name, group in by_type.items()}
    questions = {name: _conditions(drawn, f"{seed}/{name}") for name, drawn in items.items()}
    everything = [question for variants in questions.values() for asked in variants.values() for question in asked]
    answers = _ask(everything, answer, batch_size, progress)
    results = {}
    for name, variants in questions.items():
        hits = {
            variant: sum(
                exact_match(answers[_content(question)], item.turns[-1].text)
                for question, item in zip(asked, items[name], strict=True)
            )
            for variant, asked in variants.items()
        }
        results[name] = TypeResult(
            kind=types[name],
            n=len(items[name]),
            hits=hits[TRUE],
            absent={kind: count for (word, kind), count in hits.items() if word == "absent"},
            shuffled={kind: count for (word, kind), count in hits.items() if word == "shuffled"},
        )
    answered = (
        Answered(item, answers[_content(question)])
        for name, drawn in items.items()
        for item, question in zip(drawn, questions[name][TRUE], strict=True)
    )
    return Report(results, tuple(answered))


def _content(question: Sample) -> Content:
    return question.turns, input_of(question)


def _conditions(items: list[Sample], seed: str) -> dict[Variant, list[Sample]]:
    """The questions of one type in every condition, in one order; every kind they carry is tried, needed or not."""
    questions = [question_of(item) for item in items]
    golds = [gold_of(item) for item in items]
    variants = {TRUE: questions}
    for kind in sorted({kind for question in questions for kind in kinds_of(question)}):
        variants["absent", kind] = [absent(question, kind) for question in questions]
        exchanged = shuffled(questions, golds, kind, random.Random(f"{seed}/{kind}"))
        if exchanged is not None:
            variants["shuffled", kind] = exchanged
    return variants


def _ask(questions: Sequence[Sample], answer: Answer, batch_size: int, progress: Progress | None) -> dict[Content, str]:
    """Answers by the question's content. Questions of one shape lie together, so that batches are dense."""
    distinct = {_content(question): question for question in questions}
    answers: dict[Content, str] = {}
    for batch in _batches(list(distinct.values()), batch_size):
        given = answer(batch)
        if len(given) != len(batch):
            raise ValueError(f"{len(given)} answers to {len(batch)} questions: expected one answer to each")
        answers.update(zip(map(_content, batch), given, strict=True))
        if progress is not None:
            progress(len(answers), len(distinct))
    return answers


def _batches(questions: list[Sample], size: int) -> Iterator[list[Sample]]:
    by_kinds: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for question in questions:
        by_kinds[tuple(sorted(kinds_of(question)))].append(question)
    for kinds in sorted(by_kinds):
        group = sorted(by_kinds[kinds], key=_length)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _length(question: Sample) -> int:
    return sum(len(turn.text) for turn in question.turns) + len(input_of(question))
