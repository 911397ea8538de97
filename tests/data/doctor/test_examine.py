import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from macaw_lit.data.doctor import examine as module
from macaw_lit.data.doctor.examine import Medium, Verdict, examine, examine_all, small_picture
from macaw_lit.data.doctor.pool import Failure
from macaw_lit.data.media import CAUSES, ODDITIES, load
from macaw_lit.errors import MediaError

BEYOND_HEADERS = {"nan.wav"}
"""What cannot be told without decoding."""


def test_every_damage_is_told_by_its_cause(zoo: Any) -> None:
    found = {name: examine(zoo.medium(name)) for name in zoo.causes}
    assert {name: verdict.cause for name, verdict in found.items()} == zoo.causes
    for name, verdict in found.items():
        assert verdict.cause in CAUSES
        assert name in verdict.detail
        assert "\n" not in verdict.detail


def test_every_oddity_is_told_and_does_no_harm(zoo: Any) -> None:
    found = {name: examine(zoo.medium(name)) for name in zoo.odd}
    assert found == {name: Verdict(odd=odd) for name, odd in zoo.odd.items()}
    assert {each for odd in zoo.odd.values() for each in odd} == set(ODDITIES)


def test_the_verdict_is_what_training_meets(zoo: Any) -> None:
    for name in (*zoo.causes, *zoo.odd):
        medium = zoo.medium(name)
        try:
            load(medium.path, medium.kind, 8)
            met = None
        except MediaError as error:
            met = error.cause
        assert examine(medium).cause == met, name


def test_headers_tell_the_same_but_for_what_lies_inside(zoo: Any) -> None:
    for name, cause in zoo.causes.items():
        found = examine(zoo.medium(name), "header").cause
        assert found == (None if name in BEYOND_HEADERS else cause), name
    for name, odd in zoo.odd.items():
        found = examine(zoo.medium(name), "header")
        assert found == Verdict(odd=tuple(each for each in odd if each != "silent")), name


def test_of_other_kinds_the_file_is_checked(zoo: Any) -> None:
    assert examine(Medium("depth", str(zoo.root / "text.wav"))) == Verdict()
    assert examine(Medium("depth", str(zoo.root / "none"))).cause == "missing"


def test_what_a_library_raises_is_a_verdict(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(module, "load", fail)
    found = examine(zoo.medium("whole.jpg"))
    assert found.cause == "crashed"
    assert "MemoryError: no room" in found.detail


def test_damaged_pictures_and_films_have_thumbnails(zoo: Any) -> None:
    for name in ("cut.jpg", "cut.png", "cmyk.jpg", "deep.png", "fast.mp4", "long.mp4"):
        picture = small_picture(zoo.medium(name))
        assert picture is not None, name
        assert picture.startswith(b"\xff\xd8")
        assert len(picture) < 8000
    for name in ("none.jpg", "text.jpg", "bomb.png", "text.mp4", "whole.wav", "folder.jpg"):
        assert small_picture(zoo.medium(name)) is None, name


def test_the_journal_spares_unchanged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    media = [Medium("image", name) for name in names]
    for name in names:
        Image.new("RGB", (4, 4)).save(name)
    journal = tmp_path / "logs" / "journal.jsonl"
    tracked: list[tuple[list[Medium], int]] = []

    def track(done: Any, total: int) -> list[Medium]:
        tracked.append((list(done), total))
        return tracked[-1][0]

    first = examine_all([*media, media[0]], journal, track=track)
    assert first == dict.fromkeys(media, Verdict())
    assert sorted(tracked[0][0]) == media
    assert tracked[0][1] == 3

    asked: list[Medium] = []
    real = module.run

    def run(task: Any, items: Any, *rest: Any) -> Any:
        asked.extend(items)
        return real(task, items, *rest)

    monkeypatch.setattr(module, "run", run)
    assert examine_all(media, journal) == first
    assert asked == []
    Path(names[1]).write_bytes(b"")
    Path(names[2]).unlink()
    assert [found.cause for found in examine_all(media, journal).values()] == [None, "empty", "missing"]
    assert asked == media[1:]
    examine_all(media, journal, mode="header")
    assert asked == [*media[1:], *media]


def test_a_run_that_was_broken_off_goes_on_where_it_was(tmp_path: Path) -> None:
    media = []
    for number in range(40):
        soundfile.write(tmp_path / f"{number}.wav", np.ones(100, np.float32) / 2, 16_000)
        media.append(Medium("audio", str(tmp_path / f"{number}.wav")))
    journal = tmp_path / "journal.jsonl"

    def stop_after(count: int) -> Any:
        def track(done: Any, total: int) -> Any:
            for number, medium in enumerate(done, 1):
                yield medium
                if number == count:
                    return

        return track

    with pytest.raises(KeyError):  # the bar above ends early as Ctrl-C would, and the verdicts are not all there
        examine_all(media, journal, track=stop_after(15))
    kept = journal.read_bytes().splitlines()
    assert len(kept) == 15
    journal.write_bytes(b"\n".join(kept)[:-7])  # torn off within the last line, as by a full disk
    found = examine_all(media, journal)
    assert found == dict.fromkeys(media, Verdict())
    again = journal.read_bytes().splitlines()
    assert again[:14] == kept[:14]
    assert sorted(again[15:]) == sorted({*again[15:]})
    assert len(again) == 15 + 26  # the torn line stays as it is and is passed over


def test_what_hangs_is_named_and_tried_again_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    medium = Medium("image", str(tmp_path / "a.png"))
    real = module.run
    failure = Failure("timeout", "no answer within 1 s")
    monkeypatch.setattr(module, "run", lambda task, items, *rest: ((item, failure) for item in items))
    (found,) = examine_all([medium], tmp_path / "journal").values()
    assert found.cause == "timeout"
    assert "a.png" in found.detail
    monkeypatch.setattr(module, "run", real)
    assert examine_all([medium], tmp_path / "journal") == {medium: Verdict()}


def test_a_pipe_cannot_hang_the_doctor(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert examine(Medium("image", str(tmp_path / "pipe.png"))).cause == "not_a_file"
