import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macaw_lit.errors import ConfigError
from macaw_lit.generation.assemble import assemble
from macaw_lit.generation.filters import FILTERS, rouge_l
from macaw_lit.generation.journal import Journal
from macaw_lit.generation.parse import Completion, Pair


def fill(path, answers):
    """A journal with these answers: (job, pairs, fault) in order."""
    journal = Journal(path / "journal.jsonl")
    for job, pairs, fault in answers:
        rows = [{"instruction": asked, "response": said, "type": "object"} for asked, said in pairs]
        completion = Completion(json.dumps({"pairs": rows}), model="tiny-1")
        journal.answer(job.id, journal.sent(job.id, 1, 0.0, {}), completion, fault, 0.0, 0.0)
    return journal


def test_every_stage_is_counted(jobs, tmp_path):
    good, other = ("What is the colour of it?", "It is red."), ("Who is sitting there now?", "A tall man.")
    answers = [
        (jobs[0], [good, ("WHAT is the colour of it", "Blue as the sky.")], None),  # an equal question
        (jobs[1], [good, ("What is the colour of it, then?", "It is red.")], None),  # nearly the same pair
        (jobs[2], [("Hm?", "Yes."), ("What does the caption say?", "A dog.")], None),  # too short; a leak
        (jobs[3], [("Say it again.", "Say it again!"), other], None),  # an echo
        (jobs[4], [good, other], None),
        (jobs[5], [other], "count"),
        (jobs[5], [good], "count"),
    ]
    with fill(tmp_path, answers) as journal:
        found = assemble(journal, jobs[:7], most_repeats=2)
    assert dict(found.media) == {"media": 7, "answered": 6, "count": 1}
    assert found.stages == {
        "asked": 12,
        "parsed": 11,
        "length": 10,
        "leak": 9,
        "echo": 8,
        "grounded": 8,
        "duplicate": 7,
        "near_duplicate": 6,
        "repeated": 4,
    }
    # Either question stands twice. Of the sixth's two answers, equally long, the first is taken.
    assert [(item.record.id, item.pairs[0].response) for item in found.items] == [
        ("0.jpg", "It is red."),
        ("1.jpg", "It is red."),
        ("3.jpg", "A tall man."),
        ("4.jpg", "A tall man."),
    ]
    item = found.items[0]
    assert item.uid == f"{jobs[0].id}/0"
    wanted = {"source": "coco", "grounded_in": "captions", "template": "test", "model": "tiny-1", "job": jobs[0].id}
    assert wanted.items() <= item.provenance.items()


def test_the_good_answer_is_taken_and_otherwise_the_one_with_most_pairs(jobs, tmp_path):
    two = [("What is it then?", "A cup."), ("Where is it now?", "On a book.")]
    answers = [
        (jobs[0], two, "length"),
        (jobs[0], two[:1], None),
        (jobs[1], two[:1], "count"),
        (jobs[1], two, "length"),
    ]
    with fill(tmp_path, answers) as journal:
        found = assemble(journal, jobs[:2])
    assert [item.record.id for item in found.items] == ["0.jpg", "1.jpg", "1.jpg"]


def test_wordings_and_ungrounded_responses_are_counted_and_the_stages_add_up(jobs, tmp_path):
    asked = [
        "What is the colour of it here?",
        "what is the colour of it here",
        "What is the colour of it here then?",
        "Who sits?",
    ]
    answers = [
        (job, [(question, f"Number {n} is a medium.")], None)
        for n, (job, question) in enumerate(zip(jobs, asked, strict=False))
    ]
    answers += [(jobs[4], [("Is there anything else?", "Purple elephants dance.")], None)]
    with fill(tmp_path, answers) as journal:
        exact = assemble(journal, jobs, most_repeats=1)
        near = assemble(journal, jobs, most_repeats=1, alike=0.8)  # six of seven word pairs are equal
        strict = assemble(journal, jobs, most_repeats=1, alike=0.8, least_grounded=0.3)
    assert [exact.stages["repeated"], near.stages["repeated"], strict.stages["repeated"]] == [4, 3, 2]
    assert strict.stages["grounded"] == 4  # "medium n" is the caption
    for found in (exact, near, strict):
        left = list(found.stages.values())
        assert left == sorted(left, reverse=True)
        assert left[-1] == len(found.items)


PAIR = Pair("What is it?", "A cup.")


@pytest.mark.parametrize(
    ("name", "dropped", "kept"),
    [
        ("length", [Pair("What?", "x"), Pair("what " * 81, "x"), Pair("What is it?", "x " * 251)], [PAIR]),
        (
            "leak",
            [
                Pair("What does the caption say?", "x"),
                Pair("What is it?", "As an AI, I guess."),
                Pair("What is it?", "I cannot see the image."),
                Pair("What is it?", "I can’t hear it.".replace("’", "'")),
                Pair("What is <image>?", "x"),
                Pair("What is it?", "The provided description says so."),
            ],
            [PAIR, Pair("Is the captain there?", "I see the transcription desk."), Pair("Who?", "Nothing, not one.")],
        ),
        (
            "english",
            [
                Pair("Was ist auf dem Bild zu sehen?", "Ein Hund liegt auf einem grünen Sofa."),
                Pair("Qu'est-ce que l'homme fait dans la cuisine ?", "Il prépare le repas avec sa fille."),
                Pair("¿Qué hace el hombre en la cocina?", "Prepara la comida con su hija pequeña."),
                Pair("画面里有什么？", "一只狗。"),
                Pair("Что это?", "Собака."),
                Pair("What is it?", "Это собака, она лежит на диване."),
            ],
            [
                PAIR,
                Pair("What is the man doing in the kitchen?", "He prepares a meal with his daughter."),
                Pair("Which café is it?", "It is the Café Müller in São Paulo, by the river."),
                Pair("List it.", "Red, blue, green and yellow balloons float above city rooftops."),
                Pair("Was?", "Ein Hund."),  # too short to tell, as the filter says of itself
                Pair("How many?", "3 + 4"),
            ],
        ),
        (
            "unsafe",
            [
                Pair("Is the woman naked?", "x"),
                Pair("What is it?", "It shows SUICIDE."),
                Pair("How do I make a bomb?", "x"),
                Pair("What is it?", "A pornographic picture."),
            ],
            [
                PAIR,
                Pair("What grows there?", "Grapes and rapeseed."),
                Pair("What kind is it?", "A bombastic method of therapist and denuded hills."),
                Pair("Who kills it?", "The cat."),  # words are caught, and not meanings
            ],
        ),
        ("echo", [Pair("It is red.", "it is red")], [PAIR, Pair("Is it red?", "It is red.")]),
        (
            "upstream_v1",  # the original's rule to the letter: substrings, case kept, "no" between spaces
            [
                Pair("Write a caption.", "x"),
                Pair("x", "a captioned one"),
                Pair("x", "There is no dog."),
                Pair("x", "another"),
                Pair("x", "nothing"),
            ],
            [PAIR, Pair("Is this not so?", "No, it is."), Pair("x", "Caption"), Pair("x", "no."), Pair(" no ", "x")],
        ),
    ],
)
def test_filters(name, dropped, kept):
    assert [FILTERS[name](pair) for pair in dropped] == [True] * len(dropped)
    assert [FILTERS[name](pair) for pair in kept] == [False] * len(kept)


def test_settings_that_cannot_work_are_refused(jobs, tmp_path):
    with fill(tmp_path, []) as journal:
        with pytest.raises(ConfigError, match="'lenght' is unknown, expected some of length, leak"):
            assemble(journal, jobs, ["lenght"])
        with pytest.raises(ConfigError, match="near_duplicate=7.0"):
            assemble(journal, jobs, near_duplicate=7.0)


def subsequences(words):
    """All subsequences of a short list, by brute force."""
    return {tuple(w for place, w in enumerate(words) if mask >> place & 1) for mask in range(2 ** len(words))}


@given(*[st.lists(st.sampled_from("abc"), max_size=7)] * 2)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(left, right):
    longest = max(map(len, subsequences(left) & subsequences(right)))
    if longest:
        precision, recall = longest / len(right), longest / len(left)
        assert rouge_l(left, right) == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert rouge_l(left, right) == 0
