"""Stand-ins for unusable samples: deterministic, accounted for, and never endless."""

from pathlib import Path

import pytest

from macaw_lit.data.collate import Collator
from macaw_lit.data.mix import Draw
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.rows import MAX_REPLACEMENTS, Loader, Rows
from macaw_lit.errors import DataError
from macaw_lit.types import MediaRef, Sample, Turn


def samples(name: str, paths: list[Path | None]) -> list[Sample]:
    """One sample per path; None is a sample without media."""
    refs = [() if path is None else (MediaRef("image", path),) for path in paths]
    turns = [(Turn("user", "What?", media), Turn("assistant", "That.")) for media in refs]
    return [Sample(dialogue, f"{name}/{number}", name) for number, dialogue in enumerate(turns)]


@pytest.fixture
def preprocess(tokenizer, specs) -> Preprocessor:
    return Preprocessor(tokenizer, specs)


def test_the_next_of_the_same_source_stands_in_and_wraps_around(preprocess, tmp_path, picture):
    gone = tmp_path / "gone.jpg"
    rows = Rows(
        {"text": samples("text", [None] * 2), "mine": samples("pictures", [picture(9), gone, gone])}, preprocess
    )
    assert len(rows) == 5
    assert [rows[Draw(3, row)].uid for row in range(5)] == ["text/0", "text/1", *["pictures/0"] * 3]
    assert rows[0].uid == "text/0"
    skipped = rows[Draw(0, 3)].skipped
    assert [(row.cause, row.locator) for row in skipped] == [("missing", "pictures/1"), ("missing", "pictures/2")]
    assert all("gone.jpg" in row.detail for row in skipped)
    assert {row.source for row in skipped} == {"mine"}, "the mixture's name, not the reader's"
    assert rows[Draw(0, 2)].skipped == ()
    assert [(rows[Draw(3, row)].source, rows[Draw(3, row)].epoch) for row in (1, 4)] == [("text", 3), ("mine", 3)]


def test_a_row_that_is_too_long_is_skipped_like_a_bad_medium(preprocess):
    good, bad = samples("texts", [None] * 2)
    long = Sample((Turn("user", "why? " * 1000), bad.turns[1]), bad.uid, bad.source)
    example = Rows({"texts": [good, long]}, preprocess)[Draw(0, 1)]
    assert example.uid == good.uid
    assert [row.cause for row in example.skipped] == ["text_too_long"]


def test_a_source_that_only_fails_is_given_up(preprocess, tmp_path, picture):
    bad = [tmp_path / "gone.jpg"] * MAX_REPLACEMENTS
    rows = Rows({"pictures": samples("pictures", [*bad, picture(9)])}, preprocess)
    assert len(rows[Draw(0, 1)].skipped) == MAX_REPLACEMENTS - 1
    with pytest.raises(DataError, match=f"{MAX_REPLACEMENTS} samples in a row of pictures .*missing"):
        rows[Draw(0, 0)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_reaches_the_main_process_in_one_line(preprocess, tmp_path, workers: int):
    rows = Rows({"pictures": samples("pictures", [tmp_path / "gone.jpg"] * 3)}, preprocess)
    loader = Loader(rows, Collator(preprocess.pad, preprocess.specs, "right"), num_workers=workers, batch_size=2)
    message = ""
    try:  # pytest.raises would keep the worker's queues in a reference cycle, and torch then waits five seconds
        list(loader)
    except DataError as error:
        message = str(error)
    assert message.startswith("3 samples in a row of pictures are unusable (missing 3)")
    assert "\n" not in message
