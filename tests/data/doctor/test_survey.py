import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from macaw_lit.data.doctor import page as page_module
from macaw_lit.data.doctor import survey as survey_module
from macaw_lit.data.doctor.examine import Medium, Verdict
from macaw_lit.data.doctor.page import page, shown, table
from macaw_lit.data.doctor.survey import Report, survey
from macaw_lit.data.doctor.texts import TextRuler
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import ConfigError, DataError, SampleError
from macaw_lit.types import Bytes, MediaRef, Rejection, Sample, Turn

SPOILT = {"bad.jpg": "truncated", "worse.mp4": "no_video"}
ODD = {"cmyk.jpg": ("cmyk",)}


def examine(media: Iterable[Medium]) -> Mapping[Medium, Verdict]:
    return {
        medium: Verdict(
            SPOILT.get(medium.path), f"{medium.path}: spoilt" * (medium.path in SPOILT), ODD.get(medium.path, ())
        )
        for medium in media
    }


def row(number: int, question: str = "", *media: str, answer: str = "Yes.") -> Sample:
    kinds = {"jpg": "image", "mp4": "video", "wav": "audio"}
    refs = tuple(MediaRef(kinds[name[-3:]], name) for name in media)
    return Sample((Turn("user", question or f"Q{number}?", refs), Turn("assistant", answer)), f"s/{number}", "s")


def look(train: list[Any], heldout: list[Any] = (), room: int = 512, tokenizer: Any = None) -> Report:  # type: ignore[assignment]
    readers = {"train": {"s": lambda: train}, "heldout": {"t": lambda: list(heldout)}}
    return survey(readers, TextRuler(room, tokenizer), examine)


def test_rows_are_counted_under_one_cause_each() -> None:
    rejected = Rejection("media_missing", "file[3]", "not there")
    train = [
        row(0, "", "good.jpg"),
        row(1, "", "good.jpg", "bad.jpg", "worse.mp4"),
        row(2, "", "worse.mp4"),
        rejected,
        row(4, " ", "bad.jpg"),
        row(5, "", "cmyk.jpg"),
        Sample((Turn("assistant", "?"),), "s/6", "s"),
    ]
    report = look(train)
    tally = report.tallies[0]
    assert (tally.rows, tally.usable) == (7, 2)
    assert tally.rejected == {"media_missing": 1}
    assert tally.unusable == {"truncated": 1, "no_video": 1, "empty_instruction": 1, "turn_order": 1}
    assert tally.odd == {"cmyk": 1}
    assert (report.rows, report.lost, report.media) == (7, 5, 4)
    spoilt = {finding.place: (finding.cause, finding.rows) for finding in report.findings if finding.kind}
    assert spoilt == {"bad.jpg": ("truncated", 2), "worse.mp4": ("no_video", 2), "cmyk.jpg": ("cmyk", 1)}
    assert [finding.place for finding in report.findings if finding.level == "rejected"] == ["file[3]"]


def test_media_that_rows_hold_are_told_apart_by_their_content() -> None:
    held = [MediaRef("image", Bytes(data, "image in the row.png")) for data in (b"one", b"two", b"one")]
    rows = [
        Sample((Turn("user", "What?", (ref,)), Turn("assistant", "A cup.")), f"s/{number}", "s")
        for number, ref in enumerate(held)
    ]
    readers = {"train": {"s": lambda: rows}}
    report = survey(readers, TextRuler(512), lambda media: dict.fromkeys(media, Verdict()))
    assert (report.media, report.tallies[0].odd) == (2, {"duplicate": 1})
    assert [finding.place for finding in report.findings] == ["s/2"]


WORDS = st.tuples(st.sampled_from(["", "Same?", " "]), st.sampled_from(["good.jpg", "bad.jpg", "cmyk.jpg"])) | st.none()


@given(st.lists(WORDS, max_size=12), st.lists(WORDS, max_size=12))
def test_nothing_disappears(train: list[Any], heldout: list[Any]) -> None:
    rows = [
        [row(number, *words) if words else Rejection("duplicate", "here") for number, words in enumerate(split)]
        for split in (train, heldout)
    ]
    report = look(*rows)
    for tally, given_rows in zip(report.tallies, rows, strict=True):
        assert tally.rows == len(given_rows)
        assert tally.rows == tally.usable + tally.rejected.total() + tally.unusable.total()
    assert json.loads(json.dumps(report.as_json()))["lost"] == report.lost


def test_a_file_that_cannot_be_read_is_one_finding_and_the_others_go_on() -> None:
    def broken() -> Iterator[Sample]:
        yield row(0)
        raise DataError("x.csv: breaks off")

    report = survey({"train": {"a": broken, "b": lambda: [row(1)]}}, TextRuler(512), examine)
    assert [(tally.rows, tally.usable) for tally in report.tallies] == [(2, 1), (1, 1)]
    assert report.tallies[0].rejected == {"file_unreadable": 1}
    assert report.findings[0].detail == "x.csv: breaks off"


def test_rows_that_repeat_others_are_odd() -> None:
    train = [
        row(0, "What is this?", "good.jpg"),
        row(1, "what  is THIS?", "good.jpg"),
        row(2, "What is this?", "good.jpg", answer="No."),
        row(3, "What is this?", "other.jpg"),
        row(4, "What is this?"),
    ]
    report = look(train, [row(5, "What is this?", "good.jpg"), row(6, "", "new.jpg")])
    assert report.tallies[0].odd == {"duplicate": 1, "same_question": 1}
    assert report.tallies[1].odd == {"in_train_too": 1}
    assert report.lost == 0
    assert {finding.place: finding.cause for finding in report.findings} == {
        "s/1": "duplicate", "s/2": "same_question", "s/5": "in_train_too"
    }  # fmt: skip


@pytest.mark.parametrize("room", [20, 60, 130, 200, 260, 400])
@pytest.mark.parametrize("words", [1, 10, 30])
def test_texts_are_measured_as_the_preprocessor_lays_them_out(
    tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path, room: int, words: int
) -> None:
    question, answer = "What is it? " * words, "It is a circle. " * 5
    sample = Sample(
        (Turn("user", question), Turn("assistant", answer), Turn("user", "So?"), Turn("assistant", "Yes.")), "a", "s"
    )
    fit = TextRuler(room, tokenizer_folder)(sample)
    preprocess = Preprocessor(tokenizer, {}, max_length=room)
    try:
        met = (False, preprocess(sample).truncated)
    except SampleError:
        met = (True, False)
    assert (fit.too_long, fit.cut) == met


def test_long_texts_cost_rows_only_where_a_tokenizer_counted_them(tokenizer_folder: Path) -> None:
    train = [row(0, "Why? " * 200), row(1, answer="Because. " * 200), row(2)]
    sure = look(train, room=256, tokenizer=tokenizer_folder)
    assert sure.tallies[0].unusable == {"text_too_long": 1}
    assert sure.tallies[0].odd == {"response_cut": 1}
    guessed = look(train, room=256)
    assert guessed.lost == 0
    assert guessed.tallies[0].odd == {"text_maybe_too_long": 1, "response_cut": 1}


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer"):
        TextRuler(512, tmp_path)


class Seen(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_escapes_what_comes_from_the_data_and_needs_no_other_file() -> None:
    nasty = "<script>alert(1)</script><img src=x onerror=y>.jpg"
    SPOILT[nasty] = "truncated"
    report = look(
        [row(0, "", nasty), Rejection("duplicate", "\udcff<b>", "</style><iframe src='//x'>"), row(2, "", "cmyk.jpg")]
    )
    del SPOILT[nasty]
    found = Seen(page(report, shown(report), {Medium("image", nasty): b"\xff\xd8picture"}))
    assert found.tags["script"] == found.tags["iframe"] == found.tags["b"] == found.tags["link"] == 0
    assert found.tags["img"] == 1
    assert found.addresses == ["data:image/jpeg;base64,/9hwaWN0dXJl"]
    text = "".join(found.texts)
    assert nasty in text
    assert "\\udcff<b>" in text
    assert "CMYK: converted to RGB" in text
    assert "2 of 3 rows cannot be used (66.67%)" in text


def test_the_page_is_bounded_and_the_table_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "SAME", 3)
    monkeypatch.setattr(survey_module, "LISTED", 5)
    train = [*(Rejection("a", str(number)) for number in range(9)), *(row(0, "Same?") for _ in range(11))]
    report = look(train)
    assert Counter(finding.cause for finding in report.findings) == {"a": 9, "duplicate": 5}
    assert Counter(finding.cause for finding in shown(report)) == {"a": 3, "duplicate": 3}
    assert "8 more findings" in page(report, shown(report), {})
    console = Console(record=True, width=100)
    console.print(table(report))
    words = console.export_text().split()
    assert words[words.index("train") :][:8] == ["train", "s", "20", "11", "9", "a", "10", "duplicate"]
