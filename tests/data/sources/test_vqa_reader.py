import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from macaw_lit.data.sources import vqa
from macaw_lit.data.sources.rows import CAUSES
from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef, Rejection, Sample

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANSWERS = "v2_mscoco_val2014_annotations.json"


def question(key: Any, picture: Any = 42, text: Any = "What colour is the cup?") -> dict[str, Any]:
    return {"image_id": picture, "question": text, "question_id": key}


def answer(key: Any, text: Any = "red", **more: Any) -> dict[str, Any]:
    given_answers = [{"answer_id": n, "answer": "red", "answer_confidence": "yes"} for n in range(10)]
    return {
        "question_id": key,
        "image_id": 42,
        "answer_type": "other",
        "multiple_choice_answer": text,
        "answers": given_answers,
    } | more


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("val2014/COCO_val2014_000000000042.jpg", "train2017/000000000043.jpg", "own.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def write(root: Path, questions: Any, answers: Any) -> Path:
    (root / QUESTIONS).write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    if answers is not None:
        (root / ANSWERS).write_text(json.dumps({"annotations": answers}))
    return root / QUESTIONS


def test_questions_meet_their_answers_and_pictures(root: Path) -> None:
    questions = [question(42000), question(43001, 43), question(44000, 7)]
    answers = [answer(44000, image_path="own.png"), answer(43001, "blue"), answer(42000)]
    found = list(vqa.read(write(root, questions, answers), root))
    assert [row.uid for row in found if isinstance(row, Sample)] == ["vqa/42/42000", "vqa/43/43001", "vqa/7/44000"]
    first, second, third = (row for row in found if isinstance(row, Sample))
    assert [turn.text for turn in first.turns] == ["What colour is the cup?", "red"]
    assert first.turns[0].media == (MediaRef("image", root / "val2014/COCO_val2014_000000000042.jpg"),)
    assert first.meta["refs"] == ["red"] * 10
    assert (first.meta["answer_type"], first.meta["question_id"]) == ("other", 42000)
    assert second.turns[0].media[0].path == root / "train2017/000000000043.jpg"
    assert third.turns[0].media[0].path == root / "own.png"


@pytest.mark.parametrize("people", [None, 5, True, "red", {"answer": "red"}, [5]])
def test_answers_that_are_no_list_of_answers_do_no_harm(root: Path, people: Any) -> None:
    (found,) = vqa.read(write(root, [question(42000)], [answer(42000, answers=people)]), root)
    assert isinstance(found, Sample)
    assert (found.turns[1].text, found.meta["refs"]) == ("red", [])


def test_bad_rows_are_rejected_by_cause(root: Path) -> None:
    rows = [
        question(1),
        question(2),
        question(3, 99),
        question(4, "42"),
        question(5, text=" "),
        question(6, text=None),
        [],
        question([7]),
        question(8),
    ]
    answers = [
        answer(2, " "),
        answer(3),
        answer(4),
        answer(5),
        answer(6),
        7,
        {"question_id": {}},
        answer(8, image_path="../x"),
    ]
    found = list(vqa.read(write(root, rows, answers), root))
    assert [row.cause for row in found if isinstance(row, Rejection)] == [
        "undisclosed",
        "empty_response",
        "media_missing",
        "missing_key",
        "empty_instruction",
        "missing_key",
        "not_an_object",
        "undisclosed",
        "media_outside",
    ]


def test_without_the_answers_every_question_is_rejected_and_says_which_file_is_missing(root: Path) -> None:
    (found,) = vqa.read(write(root, [question(1)], None), root)
    assert isinstance(found, Rejection)
    assert found.cause == "undisclosed"
    assert ANSWERS in found.detail
    with pytest.raises(DataError, match="no such file"):
        list(vqa.read(root / QUESTIONS, root, annotations=root / "none.json"))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("question_id", "image_id", "question", "multiple_choice_answer", "answers", "image_path")
ROW = JUNK | st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JUNK | st.just(42)))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(questions=st.lists(ROW, max_size=4), answers=st.lists(ROW, max_size=4))
def test_any_junk_is_a_sample_or_a_rejection(root: Path, questions: list[Any], answers: list[Any]) -> None:
    found = list(vqa.read(write(root, questions, answers), root))
    assert len(found) == len(questions)
    assert all(isinstance(row, Sample) or row.cause in CAUSES for row in found)
