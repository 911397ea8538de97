"""Rows about one medium become dialogues, and no row is lost, doubled or torn."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macaw_lit.data.sources.dialogues import join
from macaw_lit.types import MediaRef, Rejection, Sample, Turn


def row(medium: str | None, number: int) -> Sample:
    media = (MediaRef("image", f"{medium}.jpg"),) if medium else ()
    turns = (Turn("user", f"Q {medium} {number}", media), Turn("assistant", f"A {medium} {number}"))
    return Sample(turns, f"test/{medium}/{number}", "test", {"type": "image.colour"})


def rows(groups: Iterable[tuple[str | None, int]]) -> list[Sample]:
    return [row(medium, number) for medium, count in groups for number in range(count)]


def exchanges(turns: Iterable[Turn]) -> list[tuple[Turn, Turn]]:
    """Each question with its answer."""
    iterator = iter(turns)
    return list(zip(iterator, iterator, strict=True))


@given(
    groups=st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(1, 9)), max_size=8),
    turns=st.integers(1, 5),
)
def test_every_row_is_asked_once_beside_its_own_medium(groups, turns):
    given_rows = rows(groups)
    dialogues = list(join(given_rows, turns))
    asked = [
        (ask.text, tell.text, dialogue.turns[0].media)
        for dialogue in dialogues
        for ask, tell in exchanges(dialogue.turns)
    ]
    wanted = [(sample.turns[0].text, sample.turns[1].text, sample.turns[0].media) for sample in given_rows]
    assert sorted(asked, key=str) == sorted(wanted, key=str)
    assert all(len(dialogue.turns) <= 2 * turns for dialogue in dialogues)
    assert all(not turn.media for dialogue in dialogues for turn in dialogue.turns[1:])
    assert [dialogue for dialogue in dialogues if not dialogue.turns[0].media] == [
        sample for sample in given_rows if not sample.turns[0].media
    ]


@pytest.mark.parametrize(
    ("questions", "turns", "sizes"),
    [(4, 4, [4]), (5, 4, [3, 2]), (9, 4, [3, 3, 3]), (10, 4, [4, 3, 3]), (3, 1, [1, 1, 1]), (1, 4, [1])],
)
def test_as_few_dialogues_as_will_hold_them_as_even_as_can_be(questions, turns, sizes):
    dialogues = list(join(rows([("a", questions)]), turns))
    assert [len(dialogue.turns) // 2 for dialogue in dialogues] == sizes


def test_a_dialogue_names_its_rows_and_a_lone_row_stays_as_it_was():
    first, second, lone = join(rows([("a", 5), ("b", 1)]), 4)
    assert sorted(first.meta["rows"] + second.meta["rows"]) == [f"test/a/{number}" for number in range(5)]
    for dialogue in (first, second):
        assert dialogue.uid == dialogue.meta["rows"][0]
        assert dialogue.turns[0].text == "Q " + dialogue.uid.removeprefix("test/").replace("/", " ")
        assert dialogue.source == "test"
    assert lone == row("b", 0)


def test_the_same_rows_give_the_same_dialogues_and_media_are_shuffled_apart():
    groups = [(f"medium{number}", 6) for number in range(20)]
    assert list(join(rows(groups), 6)) == list(join(rows(groups), 6))
    openings = {dialogue.uid.rsplit("/", 1)[1] for dialogue in join(rows(groups), 6)}
    assert len(openings) > 3, "the same kind of question opens every dialogue"


def test_media_order_is_kept_and_rejections_pass():
    bad = Rejection("missing_key", "file.json[3]", "no 'response'")
    mixed = [*rows([("b", 2)]), bad, *rows([("b", 2), ("a", 2)]), bad]
    found = list(join(mixed, 4))
    assert [entry if isinstance(entry, Rejection) else entry.turns[0].media[0].path for entry in found] == [
        "b.jpg",
        bad,
        "b.jpg",
        "a.jpg",
        bad,
    ]


def test_rows_are_read_one_medium_at_a_time():
    read = []

    def source() -> Iterable[Sample]:
        for sample in rows([("a", 2), ("b", 2), ("c", 2)]):
            read.append(sample.uid)
            yield sample

    next(join(source(), 4))
    assert len(read) == 3, "one row ahead, to see that the medium has changed"
