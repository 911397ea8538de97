"""Written data through the readers of `data.sources`, review sheets there and back, and statistics by hand."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from macaw_lit.data.sources import conversations, macaw, messages
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.evaluation.answers import wilson
from macaw_lit.generation.assemble import Assembled, Item
from macaw_lit.generation.card import dataset_card
from macaw_lit.generation.parse import Pair
from macaw_lit.generation.records import Record
from macaw_lit.generation.review import apply_sheet, write_sheet
from macaw_lit.generation.statistics import statistics, table, write_statistics
from macaw_lit.generation.templates import Asking, Template
from macaw_lit.generation.writers import write_items

CUP, BOOK = Pair("What is it?", "A “cup”,\nred.", "object"), Pair("Where?", "On a book.", "position")


@pytest.fixture
def items(tmp_path, clip):
    (tmp_path / "train2014").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train2014" / "COCO_train2014_000000000001.jpg")
    clip(tmp_path / "train2014" / "AB12C.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3)
    records = [
        Record("train2014/COCO_train2014_000000000001.jpg", "image", "coco", ("A cup, =1+1.",)),
        Record("train2014/AB12C", "video", "charades", ("A book.",)),
    ]
    return [Item(f"job{n}/0", record, (CUP, BOOK), {"job": f"job{n}"}) for n, record in enumerate(records)]


@pytest.mark.parametrize("name", ["llava", "messages"])
def test_dialogues_come_back_through_our_readers(items, tmp_path, name):
    (path,) = write_items(items, tmp_path / "out", [name])
    samples = list({"llava": conversations, "messages": messages}[name].read(path, tmp_path))
    for item, sample in zip(items, samples, strict=True):
        assert [turn.text for turn in sample.turns] == [
            text for p in item.pairs for text in (p.instruction, p.response)
        ]
        assert [ref.kind for ref in sample.turns[0].media] == [item.record.kind]
        assert sample.meta["provenance"] == item.provenance
    assert write_items(items, tmp_path / "again", [name])[0].read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("place", "kind"), [(0, "image"), (1, "video")])
def test_macaw_rows_come_back_as_pairs_or_joined(items, tmp_path, place, kind):
    (path,) = write_items(items[place : place + 1], tmp_path / "out", ["macaw"])
    rows = list(macaw.read(path, tmp_path, kind))
    assert [(row.turns[0].text, row.turns[1].text) for row in rows] == [
        (p.instruction, p.response) for p in (CUP, BOOK)
    ]
    assert rows[0].turns[0].media[0].kind == kind
    (joined,) = macaw.read(path, tmp_path, kind, turns=4)
    assert len(joined.turns) == 4


def test_an_unknown_format_is_refused(items, tmp_path):
    with pytest.raises(ConfigError, match="'parquet' is unknown, expected some of macaw, llava, messages"):
        write_items(items, tmp_path, ["parquet"])


def judge(path, verdicts):
    """Fills in a sheet: uid → (verdict, correction), as a spreadsheet saves it, with a byte order mark."""
    rows = list(csv.DictReader(path.open(newline="", encoding="utf-8-sig")))
    for row in rows:
        row["verdict"], row["corrected_response"] = verdicts.get(row["uid"], ("", ""))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_judgements_are_applied_and_counted(items, tmp_path):
    sheet = tmp_path / "sheet.csv"
    assert write_sheet(items, sheet) == 4
    judge(sheet, {"job0/0/0": (" Accept", ""), "job0/0/1": ("reject", ""), "job1/0/0": ("reject", "A mug.")})
    found = apply_sheet(items, sheet)
    assert [item.pairs for item in found.items] == [(CUP,), (Pair("What is it?", "A mug.", "object"), BOOK)]
    assert (found.accepted, found.corrected, found.rejected, found.unanswered) == (1, 1, 1, 0)
    assert found.acceptance == (1 / 3, *wilson(1, 3))
    assert [item.provenance["reviewed"] for item in found.items] == [True, True]
    with pytest.raises(ConfigError, match="may hold judgements"):
        write_sheet(items, sheet)


def test_questions_without_answers_wait_for_people(items, tmp_path):
    asked = [
        Item("a/0", items[0].record, (Pair("Why?", ""),), {}),
        Item("b/0", items[1].record, (Pair("Who?", ""),), {}),
    ]
    assert (apply_sheet(asked, None).items, apply_sheet(asked, None).unanswered) == ([], 2)
    write_sheet(asked, tmp_path / "sheet.csv")
    judge(tmp_path / "sheet.csv", {"a/0/0": ("", "Because.")})
    found = apply_sheet(asked, tmp_path / "sheet.csv")
    assert [item.pairs[0].response for item in found.items] == ["Because."]


def test_a_sheet_that_does_not_fit_names_its_row(items, tmp_path):
    sheet = tmp_path / "sheet.csv"
    write_sheet(items, sheet)
    judge(sheet, {"job0/0/1": ("maybe", "")})
    with pytest.raises(DataError, match=r"sheet.csv:\d+: verdict 'maybe', expected accept, reject"):
        apply_sheet(items, sheet)
    judge(sheet, {"job0/0/1": ("accept", "")})
    with pytest.raises(DataError, match="uid 'job0/0/0' names no pair of this data"):
        apply_sheet(items[1:], sheet)


def test_a_sample_for_review_has_all_types(items, tmp_path):
    many = [Item(f"{n}/0", items[0].record, (Pair("Q?", "A.", "rare" if n == 7 else "often"),), {}) for n in range(50)]
    write_sheet(many, tmp_path / "sheet.csv", 4, seed=1)
    rows = list(csv.DictReader((tmp_path / "sheet.csv").open(newline="")))
    assert [row["type"] for row in rows].count("rare") == 1
    assert len(rows) == 4


def test_statistics_match_a_count_by_hand(items, tmp_path):
    stages = {"asked": 4, "parsed": 3, "length": 2}
    reviewed = apply_sheet(items, None)
    found = statistics(
        Assembled(items, stages, Counter(media=2, answered=2)), reviewed, {"requests": 3.0, "tokens": 9.0, "usd": 0.5}
    )
    assert (found.items, found.dialogues, found.media) == (4, 2, 2)
    assert found.words_per_instruction == (3 + 1) / 2  # What is it? · Where?
    assert found.words_per_response == (3 + 3) / 2  # A “cup”, red. · On a book.
    # "A “cup”, red.": cup of cup and red; "On a book.": book, of which the first caption knows nothing.
    assert found.groundedness == pytest.approx(((1 / 2 + 0) + (0 + 1)) / 4)
    assert found.types == {"object": 2, "position": 2}
    assert found.stages == {**stages, "review": 2}
    write_statistics(found, tmp_path)
    assert json.loads((tmp_path / "statistics.json").read_text())["items"] == 4
    assert Image.open(tmp_path / "statistics.png").width > 500
    assert table(found)


def test_the_card_says_what_is_known_and_nothing_else(items):
    stages = {"asked": 4, "parsed": 3}
    reviewed = apply_sheet(items, None)
    known = {"model": "tiny-2", "created": "2026-01-02T03:04:05"}
    made = [Item(item.uid, item.record, item.pairs, item.provenance | known) for item in reviewed.items]
    found = statistics(
        Assembled(items, stages, Counter(media=2, answered=2)), reviewed, {"requests": 3.0, "tokens": 9.0, "usd": 0.5}
    )
    asking = Asking(Template("mine", "Tell of the $medium."), "tiny")
    card = dataset_card(found, made, ["coco", "charades"], asking, {"filters": ["length"], "alike": 0.8})
    facts = [
        "4 pairs of instruction and response about 2 media",
        "| captions of | charades, coco |",
        "| model | tiny-2 |",
        f"| template | mine, digest {asking.template.digest}, 10 × 1 |",
        "| answered | 2026-01-02T03:04:05 to 2026-01-02T03:04:05 |",
        "| cost | 3 requests, 9 tokens, 0.5000 USD |",
        "| rules | filters: ['length'], alike: 0.8 |",
        "| parsed | 3 | 75.0% |",
        "| review | 2 | 50.0% |",
        "2 media, 2 answered. No person has reviewed them.",
        "object 2, position 2",
        "CC BY 4.0",
        "non-commercial",
    ]
    assert [fact for fact in facts if fact not in card] == []
    assert card == dataset_card(found, made, ["charades", "coco"], asking, {"filters": ["length"], "alike": 0.8})
    assert "tiny |" in dataset_card(found, [], [], asking, {})
