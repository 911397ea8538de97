"""When an answer is right, and the interval of a share."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from macaw_lit.errors import DataError
from macaw_lit.evaluation.answers import Answered, exact_match, normalise, question_of, wilson
from macaw_lit.types import MediaRef, Sample, Turn


def sample(*turns: Turn, **meta: object) -> Sample:
    return Sample(turns, "world/1/1", "world", meta)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The circle is red.", "circle is red"),
        ("  A  RED,\tblue\nand\u00a0green! ", "red blue and green"),
        ("It's the dog\u2019s", "its dogs"),
        ("top-left", "top left"),
        ("minus: -3, and 3.5.", "minus -3 and 3.5"),
        ("\uff21\uff22\uff23 \uff11", "abc 1"),
        ("Stra\u00dfe", "strasse"),
        ("\u00bfQu\u00e9? \u300c\u8d64\u300d", "qu\u00e9 \u8d64"),
        ("A", "a"),
        ("the an", "the an"),
        ("?!", "?!"),
        (" \n", ""),
        ("theatre", "theatre"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalise_is_idempotent(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert bool(once) == bool(text.split())


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("the circle is red", "The circle is red.", True),
        ("The circle is red. It is big.", "The circle is red.", False),
        ("red", "The circle is red.", False),
        ("", "A", False),
        ("3", "-3", False),
        ("35", "3.5", False),
    ],
)
def test_exact_match_compares_the_whole_answer(answer: str, gold: str, right: bool) -> None:
    assert exact_match(answer, gold) is right


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 200), (194, 200), (50, 51)])
def test_wilson_equals_scipy(hits: int, n: int) -> None:
    reference = binomtest(hits, n).proportion_ci(confidence_level=math.erf(1.96 / math.sqrt(2)), method="wilson")
    assert wilson(hits, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_knows_nothing_without_items_and_refuses_impossible_counts() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for hits, n in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"{hits} successes of {n}"):
            wilson(hits, n)


def test_question_holds_neither_the_truth_nor_the_answer_key() -> None:
    picture = MediaRef("image", "a.jpg")
    full = sample(Turn("user", "Colour?", (picture,)), Turn("assistant", "Red."), answer="red", type="t", input="x")
    question = question_of(full)
    assert question.turns == full.turns[:1]
    assert dict(question.meta) == {"type": "t", "input": "x"}
    assert question.uid == full.uid


@pytest.mark.parametrize("turns", [(), (Turn("user", "Colour?"),)])
def test_question_without_a_truth_is_an_error(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(DataError, match=r"world/1/1: ends with (no turn|user)"):
        question_of(sample(*turns))


def test_answered_shows_the_last_question_with_its_input() -> None:
    turns = [Turn("user", "First?"), Turn("assistant", "One."), Turn("user", "Then?"), Turn("assistant", "Two.")]
    item = Answered(sample(*turns, input="the words"), "two")
    assert (item.question, item.truth, item.right, item.type) == ("Then?\nthe words", "Two.", True, "world")
    assert not Answered(sample(*turns), "one").right
