import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macaw_lit.data.sources import alpaca, files
from macaw_lit.data.sources.rows import stop_at_first
from macaw_lit.errors import DataError
from macaw_lit.types import Rejection, Sample

ROWS = [
    {"instruction": "Name the largest animal.", "input": "", "output": "The blue whale."},
    {"instruction": "Fix the typo.", "input": "helo", "output": "hello", "licence": "CC"},
    {"instruction": " Write a loop.\n", "input": "<noinput>", "output": "for i in x:\n\tprint(i)\n"},
    {"instruction": "Say yes.", "input": None, "response": "Yes."},
    {"instruction": "Add.", "input": "nan", "output": "0", "text": "Below is …"},
]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_five_rows(tmp_path: Path) -> None:
    samples = [row for row in alpaca.read(write(tmp_path / "alpaca_data.json", ROWS)) if isinstance(row, Sample)]
    assert [sample.uid for sample in samples] == [f"alpaca/alpaca_data/{number}" for number in range(5)]
    assert [(turn.role, turn.text) for turn in samples[1].turns] == [("user", "Fix the typo."), ("assistant", "hello")]
    assert samples[1].meta == {"input": "helo", "licence": "CC"}
    assert samples[2].turns[0].text == "Write a loop."
    assert samples[2].turns[1].text == "for i in x:\n\tprint(i)"
    assert samples[3].turns[1].text == "Yes."
    assert [("input" in sample.meta) for sample in samples] == [False, True, False, False, False]
    assert all(not turn.media for sample in samples for turn in sample.turns)


def test_bad_rows_are_rejected_by_cause_and_place(tmp_path: Path) -> None:
    rows = [
        {"instruction": "", "input": "", "output": "x"},
        {"instruction": "x", "input": "", "output": " \n"},
        {"input": "", "output": "x"},
        {"instruction": "x"},
        {"instruction": 7, "output": "x"},
        {"instruction": "x", "input": ["y"], "output": "x"},
        "no object",
        None,
        ROWS[0],
    ]
    path = write(tmp_path / "a.json", rows)
    found = list(alpaca.read(path))
    rejections = [row for row in found if isinstance(row, Rejection)]
    assert [row.cause for row in rejections] == [
        "empty_instruction",
        "empty_response",
        *["missing_key"] * 4,
        *["not_an_object"] * 2,
    ]
    assert rejections[4].locator == f"{path}[4]"
    assert "instruction" in rejections[4].detail
    assert isinstance(found[8], Sample)
    assert found[8].uid == "alpaca/a/8"


def test_json_lines_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8-sig")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    plain = list(alpaca.read(tmp_path / "a.json"))
    assert len(plain) == 5
    for name in ("a.jsonl", "a.json.gz", "a.jsonl.gz"):
        assert list(alpaca.read(tmp_path / name)) == plain


def test_lone_surrogates_become_encodable(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"instruction": "a\\ud800b \\ud83d\\ude00", "output": "x"}]')
    (sample,) = alpaca.read(tmp_path / "a.json")
    assert isinstance(sample, Sample)
    assert sample.turns[0].text == "a\ufffdb \U0001f600"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"instruction": "caf\xe9"}]', "0xe9 at position 21"),
        (b'[{"instruction": "a",\n"output"}]', "line 2 column 9"),
        (b'{"instruction": "a", "output": "b"}', "top level is an object with 'instruction', 'output'"),
        (b'"text"', "top level is str"),
        (b"12", "top level is int"),
        (b"", "line 1 column 1"),
        (b"\x1f\x8b\x08\x00broken", "cannot be read"),
        (b"[" * 100_000, "expected JSON"),
        (b"[" + b"9" * 5000 + b"]", "expected JSON"),
    ],
)
def test_unreadable_files_say_where(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(alpaca.read(tmp_path / "bad.json"))
    message = str(caught.value)
    assert words in message
    assert "bad.json" in message
    assert "expected" in message
    assert "\n" not in message


def test_a_bad_line_of_json_lines_is_one_rejection(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n\n{"instruction"\n' + "[" * 100_000)
    good, bad, deep = alpaca.read(tmp_path / "a.jsonl")
    assert isinstance(good, Sample)
    for row, line in ((bad, 3), (deep, 4)):
        assert isinstance(row, Rejection)
        assert (row.cause, row.locator) == ("not_json", f"{tmp_path / 'a.jsonl'}:{line}")


def test_json_lines_are_known_without_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert [row.uid for row in alpaca.read(tmp_path / "a.json") if isinstance(row, Sample)][-1] == "alpaca/a/4"


def test_text_is_composed_and_without_invisible_characters(tmp_path: Path) -> None:
    row = {
        "instruction": "\ufeffcafe\u0301\x00 \u200bau\tlait\n",
        "input": "\x1b\u200b",
        "output": "\u0915\u094d\u200d\u0937",
    }
    (sample,) = alpaca.read(write(tmp_path / "a.json", [row]))
    assert isinstance(sample, Sample)
    assert sample.turns[0].text == "caf\u00e9 au\tlait"
    assert sample.turns[1].text == "\u0915\u094d\u200d\u0937"  # the joiner is part of the Hindi letter
    assert sample.meta == {}


def test_unpacked_data_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10_000)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b" " * 10_001))
    with pytest.raises(DataError, match="over 10000 bytes"):
        list(alpaca.read(tmp_path / "a.json.gz"))


def test_strict_reading_stops_at_the_first_rejection(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [*ROWS, {"instruction": "x", "output": ""}, "y"])
    assert len(list(stop_at_first(alpaca.read(write(tmp_path / "good.json", ROWS))))) == 5
    with pytest.raises(DataError, match=r"a\.json\[5\]: empty_response") as caught:
        list(stop_at_first(alpaca.read(path)))
    assert "repair the row" in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            list(alpaca.read(path))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROW = JUNK | st.fixed_dictionaries({}, optional=dict.fromkeys(("instruction", "input", "output", "response"), JUNK))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, max_size=5))
def test_any_junk_is_a_sample_or_a_rejection(tmp_path: Path, rows: list[Any]) -> None:
    found = list(alpaca.read(write(tmp_path / "junk.json", rows)))
    assert len(found) == len(rows)
    for row in found:
        if isinstance(row, Sample):
            assert all(turn.text.encode() for turn in row.turns)
        else:
            assert row.cause in {"not_an_object", "missing_key", "empty_instruction", "empty_response"}
