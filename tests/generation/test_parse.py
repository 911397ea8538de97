import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macaw_lit.generation.parse import Completion, Pair, parse
from macaw_lit.generation.templates import Template

LINES = Template("t", "x", form="lines", pairs=2)
JSON = Template("t", "x", pairs=2)
DIALOGUE = Template("t", "x", pairs=1, turns=2)
QUESTIONS = Template("t", "x", pairs=2, answers=False)
CUP, BOOK = Pair("What is it?", "A cup.", "object"), Pair("Where is it?", "On a book.", "position")
ROWS = [{"instruction": each.instruction, "response": each.response, "type": each.type} for each in (CUP, BOOK)]
GOOD = json.dumps({"pairs": ROWS})


@pytest.mark.parametrize(
    "text",
    [
        "Q: What is it?\nA: A cup.\nQ: Where is it?\nA: On a book.",
        "Here you are:\n\nQ: What is it?\nA: A cup.\n\nQ: Where is it?\nA: On a book.",
        "1. Q: What is it?\n   A: A cup.\n2. Q: Where is it?\n   A: On a book.",
        "Q1: What is it?\nA1: A cup.\nQ2: Where is it?\nA2: On a book.",
        "**Q:** What is it?\n**A:** A cup.\n**Q:** Where is it?\n**A:** On a book.",
        "Question: What is it?\r\nAnswer: A cup.\r\nQuestion: Where is it?\r\nAnswer: On a book.",
        "Instruction 1: What is\nit?\nResponse 1: A cup.\n- Q: Where is it?\n- A: On a book.",
    ],
)
def test_lines_in_many_manners(text):
    found, fault = parse(LINES, Completion(text))
    assert [(pair.instruction, pair.response) for (pair,) in found] == [
        ("What is it?", "A cup."),
        ("Where is it?", "On a book."),
    ]
    assert fault is None


def test_an_answer_may_have_several_lines_and_a_pair_without_answer_is_left_out():
    text = "Q: Who?\nQ: What is it?\nA: A cup.\nIt is red.\nA: stray\nQ: And then?"
    assert parse(LINES, Completion(text)) == ([(Pair("What is it?", "A cup.\nIt is red."),)], "count")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Sure! {GOOD} Anything else?",
        json.dumps(ROWS),
        "\n".join(map(json.dumps, ROWS)),
        json.dumps({"pairs": [{**row, "why": {"deep": [1]}} for row in ROWS], "note": "x"}),
    ],
)
def test_json_in_many_manners(text):
    assert parse(JSON, Completion(text)) == ([(CUP,), (BOOK,)], None)


@pytest.mark.parametrize(
    ("text", "finish", "kept", "fault"),
    [
        (GOOD[:-20], "length", 1, "length"),
        (GOOD[:-20], "stop", 1, "malformed"),
        (json.dumps({"pairs": ROWS[:1]}), "stop", 1, "count"),
        (json.dumps({"pairs": ROWS * 2}), "stop", 4, "count"),
        (json.dumps({"pairs": [ROWS[0], {"instruction": "What?"}]}), "stop", 1, "count"),
        (json.dumps({"pairs": [ROWS[0], {"instruction": "What?", "response": 3}]}), "stop", 1, "count"),
        (json.dumps({"pairs": [ROWS[0], {"instruction": " \u200b", "response": "x"}]}), "stop", 1, "count"),
        ("I’m sorry, I can’t help with that.", "stop", 0, "refusal"),
        (GOOD, "content_filter", 2, "refusal"),
        ("", "stop", 0, "malformed"),
        ("{" * 5000, "stop", 0, "malformed"),
        ('{"pairs": ' + "[" * 100_000, "stop", 0, "malformed"),
    ],
)
def test_faults_keep_what_is_complete(text, finish, kept, fault):
    found, why = parse(JSON, Completion(text, finish))
    assert (len(found), why) == (kept, fault)


def test_the_last_answer_of_lines_that_were_cut_is_left_out():
    found, why = parse(LINES, Completion("Q: What is it?\nA: A cup.\nQ: Where is it?\nA: On a bo", "length"))
    assert ([pair.response for (pair,) in found], why) == (["A cup."], "length")


def test_dialogues_and_questions_alone():
    assert parse(DIALOGUE, Completion(json.dumps({"dialogues": [{"turns": ROWS}]}))) == ([(CUP, BOOK)], None)
    assert parse(DIALOGUE, Completion(json.dumps({"dialogues": [{"turns": ROWS[:1]}]})))[1] == "malformed"
    found, why = parse(QUESTIONS, Completion(GOOD))
    assert ([pair.response for (pair,) in found], why) == (["", ""], None)


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from('{}[]":,QA:\n')), max_size=400))
def test_no_text_breaks_the_parser(text):
    for template in (LINES, JSON, DIALOGUE, QUESTIONS):
        found, fault = parse(template, Completion(text))
        assert fault or len(found) == template.pairs
        assert all(pair.instruction and bool(pair.response) == template.answers for each in found for pair in each)


word = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=12)
sentence = st.lists(word, min_size=1, max_size=6).map(" ".join)


@given(st.lists(st.tuples(sentence, sentence), min_size=2, max_size=2), st.integers(0, 400))
def test_pairs_survive_both_forms_and_any_cut_keeps_a_prefix(pairs, cut):
    import unicodedata

    wanted = [tuple(unicodedata.normalize("NFC", text) for text in pair) for pair in pairs]
    lines = "\n".join(f"Q: {asked}\nA: {said}" for asked, said in pairs)
    rows = json.dumps({"pairs": [{"instruction": asked, "response": said} for asked, said in pairs]})
    for template, text in ((LINES, lines), (JSON, rows)):
        found, fault = parse(template, Completion(text))
        assert ([(pair.instruction, pair.response) for (pair,) in found], fault) == (wanted, None)
        found, _ = parse(template, Completion(text[:cut], "length"))
        assert [(pair.instruction, pair.response) for (pair,) in found] == wanted[: len(found)]
