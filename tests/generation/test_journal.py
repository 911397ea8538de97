import json

import pytest

from macaw_lit.errors import ConfigError, DataError
from macaw_lit.generation.journal import Journal
from macaw_lit.generation.parse import Completion

ANSWER = Completion("text \u2028 é", tokens_in=10, tokens_out=5, counted=True)


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "new" / "journal.jsonl"
    with Journal(path) as journal:
        journal.answer("a", journal.sent("a", 100, 1.0, {}), ANSWER, "count", 0.25, 1.0)
        journal.fault("a", journal.sent("a", 100, 1.0, {}), "server", "oops", unbilled=True)
        journal.fault("b", journal.sent("b", 100, 1.0, {}), "timeout", "late", unbilled=False)
        journal.sent("c", 100, 1.0, {})
        before = journal.jobs, journal.budget.spent
    with Journal(path) as journal:
        assert (journal.jobs, journal.budget.spent) == before
        assert journal.history("a").answers[0].completion == ANSWER
        assert journal.budget.spent == {"requests": 4, "tokens": 15 + 100 + 100, "usd": 2.25}
        assert journal.sent("a", 0, 0.0, {}) == 3
    assert len(path.read_bytes().splitlines()) == 8  # a line separator within a text breaks no line


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.answer("a", journal.sent("a", 1, 0.0, {}), ANSWER, None, 0.0, 1.0)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert (journal.history("a").sent, journal.history("a").answers) == (1, [])
        assert path.read_bytes() == whole[:first]


def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path):
    path = tmp_path / "journal.jsonl"
    for line in ("nonsense", "[]", '{"event": "sent"}', '{"event": "?", "job": "a", "attempt": 1}'):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=r"journal.jsonl:1: .* is no line of a journal; delete that line"):
            Journal(path)


def test_two_writers_are_one_too_many(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path), pytest.raises(ConfigError, match="is being written by another process"):
        Journal(path)
    with Journal(path):
        pass


def test_lines_are_plain_json(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.sent("a", 1, 0.0, {"medium": "1.jpg"})
    line = json.loads((tmp_path / "j.jsonl").read_text())
    assert {"event": "sent", "job": "a", "attempt": 1, "medium": "1.jpg"}.items() <= line.items()
