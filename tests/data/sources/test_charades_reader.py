from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from macaw_lit.data.sources import charades
from macaw_lit.errors import DataError
from macaw_lit.types import Rejection, Sample

CSV = """id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
AB12C,QT4X,Kitchen,6,7,Yes,"He opens, then ""laughs"".",bag;table,A person opens a bag.;Someone is laughing.,,30.42
XY34Z,QT4X,Hall,,,No,"A person walks
in.",,"; ;A person, walking.; A person, walking. ;",,20.0
AB12C,QT4X,Hall,5,5,Yes,A person sits.,,,,9
AB12C,QT4X,Hall,5,5,Yes,,,,,9
NONE1,QT4X,Hall,5,5,Yes,x,,A person sits.,,9
AB12C,QT4X
,QT4X,Hall,5,5,Yes,x,,A person sits.,,9
"""


@pytest.fixture
def root(tmp_path: Path, clip: Callable[..., Path]) -> Path:
    folder = tmp_path / "Charades_v1_480"
    folder.mkdir()
    frames = [np.zeros((48, 64, 3), np.uint8)] * 4
    clip(folder / "AB12C.mp4", frames, sound=np.zeros(6400, np.float32))
    clip(folder / "XY34Z.mp4", frames)
    return tmp_path


def test_rows_of_the_real_header(root: Path) -> None:
    (root / "train.csv").write_bytes(CSV.replace("\n", "\r\n").encode("utf-8-sig"))
    found = list(charades.read(root / "train.csv", root))
    samples = [row for row in found if isinstance(row, Sample)]
    assert [(sample.uid, sample.turns[1].text) for sample in samples] == [
        ("charades/AB12C/0.0", "A person opens a bag."),
        ("charades/AB12C/0.1", "Someone is laughing."),
        ("charades/XY34Z/1.0", "A person, walking."),
        ("charades/AB12C/2.0", "A person sits."),
    ]
    assert [[ref.kind for ref in sample.turns[0].media] for sample in samples[1:3]] == [["video", "audio"], ["video"]]
    assert samples[0].meta["script"] == 'He opens, then "laughs".'
    assert samples[0].meta["relevance"] == "7"
    assert len({sample.turns[0].text for sample in samples}) > 1
    rejections = [row for row in found if isinstance(row, Rejection)]
    assert [row.cause for row in rejections] == [
        "empty_response",
        "media_missing",
        "empty_response",
        "empty_instruction",
    ]
    assert rejections[1].locator == f"{root / 'train.csv'}:7"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,script\nAB12C,x\n", "descriptions"),
        (b"", "none"),
        (b"id,descriptions\nAB12C,caf\xe9\n", "0xe9 at position 25"),
        (b'id,descriptions\nAB12C,"' + b"x" * 200_000, "after line 1"),
    ],
)
def test_other_files_are_refused(root: Path, content: bytes, words: str) -> None:
    (root / "bad.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(charades.read(root / "bad.csv", root))


@pytest.mark.parametrize(
    "row", ['XY34Z,Q,Hall,1,1,Yes,"open,,A person walks.,,9', 'XY34Z,Q,Hall,1,1,Yes,"a "b" c",,A walk.,,9']
)
def test_a_quote_that_is_not_closed_swallows_no_rows_silently(root: Path, row: str) -> None:
    (root / "train.csv").write_text(f"{CSV}{row}\nAB12C,Q,Hall,1,1,Yes,x,,A person runs.,,9\n")
    with pytest.raises(DataError, match="train.csv: .* after line [0-9]+, expected CSV"):
        list(charades.read(root / "train.csv", root))
