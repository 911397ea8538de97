"""The doctor as a user calls it, on a data set of a good and many bad rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from macaw_lit.doctor import main

OWN = (
    "data=base",
    "+reader@data.train.mine=macaw",
    "data.train.mine.read.path=rows.json",
    "data.train.mine.read.media_root=media",
    "workers=1",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    media = tmp_path / "media"
    media.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(media / f"{number}.jpg")
    (media / "1.jpg").write_bytes((media / "0.jpg").read_bytes()[:300])
    (media / "2.jpg").write_bytes(b"")
    return tmp_path


def write(root: Path, *items: str) -> None:
    rows = [{"id": item, "instruction": f"What is {item}?", "response": "A picture."} for item in items]
    (root / "rows.json").write_text(json.dumps({"data": rows}))


def report(root: Path) -> Any:
    (folder,) = (root / "logs/doctor/runs").iterdir()
    assert "<h1>Data check-up</h1>" in (folder / "report.html").read_text()
    return json.loads((folder / "report.json").read_text())


def test_bad_data_is_reported_and_ends_with_exit_code_1(root: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    write(root, "0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    code, out, err = call(main, root, *OWN)
    assert code == 1
    assert "3 of 5 rows cannot be used" in err.splitlines()[-1]
    assert all(word in out for word in ("mine", "truncated", "empty", "media_missing", "60.00%"))
    found = report(root)
    assert (found["rows"], found["lost"], found["media"]) == (5, 3, 4)
    assert found["sources"][0]["unusable"] == {"truncated": 1, "empty": 1}
    assert found["sources"][0]["rejected"] == {"media_missing": 1}
    assert len((root / "logs/doctor/journal.jsonl").read_text().splitlines()) == 4


def test_what_may_be_lost_is_configured(root: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    write(root, "0.jpg", "1.jpg", "3.jpg")
    assert call(main, root, *OWN, "max_skip_rate=0.34")[0] == 0


def test_good_data_ends_with_exit_code_0(root: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    write(root, "0.jpg", "3.jpg")
    code, out, _ = call(main, root, *OWN, "mode=header")
    assert code == 0
    assert "0 of 2 rows cannot be used" in out
    assert Path(out.splitlines()[-1]).is_dir()


def test_mistakes_are_one_line(root: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    write(root, "0.jpg")
    for words, said in (
        ((*OWN, "mode=quick"), "expected header"),
        ((*OWN, "seconds=long"), "expected a number"),
        ((*OWN, "workers=0"), "expected a number of processes"),
        (("data=base",), "data.train must be given"),
        ((*OWN, "tokenizer=none"), "no tokenizer"),
        ((*OWN, "max_skip_rat=1"), "did you mean max_skip_rate"),
    ):
        code, _, err = call(main, root, *words)
        assert code == 1
        assert said in err
        assert err.count("\n") == 1
