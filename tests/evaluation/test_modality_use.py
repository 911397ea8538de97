"""Known models, from perfect to deaf, and what the measurement says of them."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from macaw_lit.errors import DataError
from macaw_lit.evaluation.modality_use import measure
from macaw_lit.evaluation.results import QuestionType
from macaw_lit.types import MediaRef, Sample, Turn

COLOURS = ("red", "green", "blue", "pink")
COUNTS = ("one", "two", "three", "four")
TYPES = {
    "text.copy": QuestionType((), False, 0.0),
    "image.colour": QuestionType(("image",), True, 0.25),
    "video.first": QuestionType(("video",), True, 0.25),
    "audio.count": QuestionType(("audio",), True, 0.25),
    "av.both": QuestionType(("video", "audio"), True, 0.25),
}


def facts(path: object) -> tuple[str, str]:
    """What is seen and heard in a file: its name says it, as in "17-red-two.mp4"."""
    _, colour, count = str(path).split(".")[0].split("-")
    return colour, count


def sample(number: int, name: str, truth: str, kinds: Sequence[str], path: str) -> Sample:
    question = Turn("user", f"{name}?" if kinds else "Copy.", tuple(MediaRef(kind, path) for kind in kinds))
    meta = {"type": name, "answer": truth} | ({} if kinds else {"input": truth})
    return Sample((question, Turn("assistant", f"It is {truth}.")), f"world/{number}/0", "world", meta)


def world(size: int = 320) -> list[Sample]:
    rows = []
    for number, (colour, count) in zip(range(size), itertools.cycle(itertools.product(COLOURS, COUNTS))):
        clip = f"{number}-{colour}-{count}.mp4"
        sound = ("video", "audio") if number % 10 else ("video",)  # some videos are silent
        rows += [
            sample(number, "image.colour", colour, ["image"], clip.replace("mp4", "jpg")),
            sample(number, "video.first", colour, sound, clip),
            sample(number, "audio.count", count, ["video", "audio"], clip),
            sample(number, "av.both", f"{colour} {count}", ["video", "audio"], clip),
            sample(number, "text.copy", f"w{number}", [], ""),
        ]
    return rows


class Oracle:
    """Knows the facts of the media it is given and guesses the others; `blind_to` names kinds that it ignores."""

    def __init__(self, *blind_to: str) -> None:
        self.blind_to = blind_to
        self.batches: list[list[Sample]] = []
        self.rng = random.Random(1)

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        self.batches.append(list(samples))
        return [f"it is {self.fact(sample)}" for sample in samples]

    def fact(self, sample: Sample) -> str:
        media = {ref.kind: ref.path for turn in sample.turns for ref in turn.media if ref.kind not in self.blind_to}
        seen = media.get("image") or media.get("video")
        colour = facts(seen)[0] if seen else self.rng.choice(COLOURS)
        count = facts(media["audio"])[1] if "audio" in media else self.rng.choice(COUNTS)
        match sample.meta["type"]:
            case "text.copy":
                return str(sample.meta["input"])
            case "audio.count":
                return count
            case "av.both":
                return f"{colour} {count}"
            case _:
                return colour


def test_a_perfect_model_passes_and_falls_to_chance_without_its_media() -> None:
    report = measure(world(), TYPES, Oracle(), n=320)
    assert report.passed, {name: result.reasons for name, result in report.types.items()}
    assert [name for name, result in report.types.items() if result.kind.gating] == list(report.types)[:4]
    for result in report.types.values():
        assert (result.n, result.accuracy) == (320, 1.0)
    image = report.types["image.colour"]
    assert set(image.absent) == set(image.shuffled) == {"image"}
    assert image.share(image.absent["image"]) == pytest.approx(0.25, abs=0.07)
    assert image.share(image.shuffled["image"]) == pytest.approx(0.25, abs=0.02)
    video = report.types["video.first"]
    assert set(video.absent) == {"video", "audio"}
    assert video.absent["audio"] == video.shuffled["audio"] == 320
    assert not report.types["text.copy"].absent


def test_a_deaf_model_is_found_out() -> None:
    report = measure(world(), TYPES, Oracle("audio"), n=320)
    assert not report.passed
    verdicts = {name: result.passed for name, result in report.types.items()}
    assert verdicts == {
        "image.colour": True,
        "video.first": True,
        "audio.count": False,
        "av.both": False,
        "text.copy": True,
    }
    assert report.types["audio.count"].reasons[0].startswith("accuracy 0.2")


def test_a_model_that_reads_the_answer_off_the_question_is_found_out() -> None:
    rows = []
    for number, colour in zip(range(200), itertools.cycle(COLOURS)):
        row = sample(number, "image.colour", colour, ["image"], f"{number}-{colour}-one.jpg")
        leaking = replace(row.turns[0], text=f"Which colour has the {colour} thing?")
        rows.append(replace(row, turns=(leaking, row.turns[1])))

    def reader(samples: Sequence[Sample]) -> list[str]:
        return [f"It is {question.turns[0].text.split()[4]}." for question in samples]

    report = measure(rows, {"image.colour": TYPES["image.colour"]}, reader)
    assert report.types["image.colour"].reasons == (
        "without image 1.00, chance 0.25",
        "shuffled image 1.00, chance 0.25",
    )


def test_equal_questions_are_asked_once_in_small_batches_of_one_shape() -> None:
    rows = world(64)
    twice = [*rows, *(replace(row, uid=row.uid + "x") for row in rows)]
    oracle, calls = Oracle(), []
    report = measure(
        twice, TYPES, oracle, n=128, batch_size=10, progress=lambda done, total: calls.append((done, total))
    )
    asked = [(question.turns, question.meta.get("input")) for batch in oracle.batches for question in batch]
    assert len(asked) == len(set(asked)) == calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert {result.n for result in report.types.values()} == {128}
    for batch in oracle.batches:
        assert len(batch) <= 10
        assert (
            len({tuple(sorted(ref.kind for turn in question.turns for ref in turn.media)) for question in batch}) == 1
        )
        assert all(question.turns[-1].role == "user" and "answer" not in question.meta for question in batch)


def test_questions_that_differ_only_in_their_input_are_different() -> None:
    report = measure(world(), TYPES, Oracle(), n=50)
    assert report.types["text.copy"].hits == 50


def test_the_seed_decides_everything() -> None:
    first, again, other = (measure(world(), TYPES, Oracle(), n=64, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [item.sample.uid for item in first.answered] != [item.sample.uid for item in other.answered]


def test_answers_given_with_true_media_are_kept_with_their_samples() -> None:
    report = measure(world(), TYPES, Oracle("image"), n=64)
    assert len(report.answered) == 5 * 64
    of_images = [item for item in report.answered if item.type == "image.colour"]
    assert sum(item.right for item in of_images) == report.types["image.colour"].hits
    assert all(
        item.answer == f"it is {item.sample.meta['input']}" for item in report.answered if item.type == "text.copy"
    )


def test_samples_without_a_type_are_no_questions_and_types_without_samples_fail() -> None:
    caption = Sample((Turn("user", "Describe."), Turn("assistant", "A dog.")), "coco/1/1", "coco", {})
    report = measure([caption, *(row for row in world() if row.meta["type"] != "av.both")], TYPES, Oracle(), n=64)
    assert report.types["av.both"].n == 0
    assert report.types["av.both"].reasons == ("no held-out items",)
    assert not report.passed


def test_one_picture_for_all_cannot_be_shuffled() -> None:
    rows = [sample(number, "image.colour", "red", ["image"], "1-red-one.jpg") for number in range(4)]
    report = measure(rows, TYPES, Oracle())
    assert "too few different images to shuffle" in report.types["image.colour"].reasons


def test_an_unknown_type_names_the_row_and_the_types() -> None:
    row = sample(7, "image.smell", "red", ["image"], "1-red-one.jpg")
    with pytest.raises(DataError, match=r"world/7/0: question type 'image\.smell' is not in the table \(text\.copy, "):
        measure([row], TYPES, Oracle())


def test_an_answerer_that_loses_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 answers to 64 questions"):
        measure(world(), TYPES, lambda samples: ["red"])
