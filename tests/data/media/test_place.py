"""Media as files, as slices of larger files and as bytes: the same pixels, frames, waveforms, causes and oddities."""

import hashlib
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from macaw_lit.data.doctor.examine import Medium, examine
from macaw_lit.data.media import has_audio, load, load_image, name_of, open_place, probe, thumbnail
from macaw_lit.data.media.place import MOST_OPEN
from macaw_lit.errors import MediaError
from macaw_lit.types import Bytes, Slice

NOISE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def sliced(path: Path, before: int = 700, after: int = 900) -> Slice:
    """The content of a file amidst other bytes."""
    data = path.read_bytes()
    whole = path.with_name(f"{path.name}.tar")
    whole.write_bytes(bytes(before) + data + b"\xff" * after)
    return Slice(whole, before, len(data), path.name, hashlib.sha256(data).hexdigest())


@pytest.fixture
def media(tmp_path: Path, clip: Callable[..., Path]) -> dict[str, Path]:
    """File name → path of media of every decoder, by libsndfile and by FFmpeg, with an odd one and a damaged one."""
    tone = (0.3 * np.sin(np.arange(16_000) / 6)).astype(np.float32)
    frames = [np.roll(NOISE, shift, axis=1) for shift in range(12)]
    Image.fromarray(NOISE).save(tmp_path / "a.jpg")
    Image.fromarray(NOISE).convert("P").save(tmp_path / "palette.png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    (tmp_path / "name.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    soundfile.write(tmp_path / "a.wav", tone, 16_000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:9000])
    for name in ("a.mp4", "a.mkv", "a.avi"):
        clip(tmp_path / name, frames, sound=tone if name == "a.mp4" else None)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:3000])
    (tmp_path / "text.mp4").write_text("no medium " * 30)
    return {path.name: path for path in tmp_path.iterdir()}


KINDS = {".jpg": ("image",), ".png": ("image",), ".wav": ("audio",), ".mp4": ("video", "audio")}


def test_a_slice_and_bytes_are_decoded_and_judged_as_the_file_is(media: dict[str, Path]) -> None:
    for name, path in media.items():
        for kind in KINDS.get(path.suffix, ("video",)):
            whole = examine(Medium(kind, str(path)))
            for place in (sliced(path), Bytes(path.read_bytes(), name)):
                found = examine(Medium(kind, place))
                assert (found.cause, found.odd) == (whole.cause, whole.odd), (name, kind)
                if whole.cause:
                    assert str(place) in found.detail
                    continue
                assert np.array_equal(load(place, kind, 5), load(path, kind, 5)), (name, kind)
                assert thumbnail(place, kind) == thumbnail(path, kind)
    assert probe(sliced(media["name.png"]), "image") == ("wrong_extension",)
    assert has_audio(Bytes(media["a.mp4"].read_bytes()))
    assert not has_audio(sliced(media["a.mkv"]))


def test_what_cannot_be_read_is_told_by_its_cause_and_place(media: dict[str, Path]) -> None:
    whole = sliced(media["a.jpg"])
    wrong = {
        "missing": Slice(whole.path.with_name("none.tar"), 0, 9, "a.jpg", ""),
        "not_a_file": Slice(whole.path.parent, 0, 9, "a.jpg", ""),
        "empty": Slice(whole.path, 0, 0, "a.jpg", ""),
        "truncated": Slice(whole.path, whole.offset, 10**5, "a.jpg", whole.sha256),
        "too_large": Slice(whole.path, 0, 2**40, "a.jpg", ""),
        "wrong_checksum": Slice(whole.path, whole.offset + 1, whole.size, "a.jpg", whole.sha256),
    }
    for cause, place in wrong.items():
        with pytest.raises(MediaError, match=re.escape(str(place.path))) as caught:
            load_image(place)
        assert caught.value.cause == cause
    for cause, data in {"empty": b"", "unreadable": b"text" * 99}.items():
        with pytest.raises(MediaError) as caught:
            load_image(Bytes(data))
        assert caught.value.cause == cause


def test_a_file_that_may_not_be_opened_is_one_error(media: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    for place in (media["a.jpg"], Slice(media["a.wav"], 0, 9, "x", "")):
        with pytest.raises(MediaError, match="Permission denied"):
            load_image(place)


def test_bytes_are_named_by_their_content() -> None:
    assert str(Bytes(b"one")) != str(Bytes(b"two"))
    assert str(Bytes(b"one")) == str(Bytes(b"one"))
    assert [name_of(place) for place in ("a/b.c", Path("b.c"), Bytes(b"", "b.c"))] == ["b.c"] * 3


def _numbered(folder: Path, count: int) -> list[Slice]:
    slices = []
    for number in range(count):
        data = bytes([number]) * 100
        (folder / f"{number}.tar").write_bytes(data * 3)
        slices.append(Slice(folder / f"{number}.tar", 100, 100, "x", hashlib.sha256(data).hexdigest()))
    return slices


def _read_all(slices: list[Slice], rounds: int) -> None:
    for number in list(range(len(slices))) * rounds:
        with open_place(slices[number]) as file:
            assert file.read() == bytes([number]) * 100


def test_many_shards_keep_few_descriptors(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    _read_all(_numbered(tmp_path, 3 * MOST_OPEN), 3)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + MOST_OPEN


def test_forked_processes_do_not_move_each_others_places(tmp_path: Path) -> None:
    """With shared offsets, three processes that read the same open files would meet a wrong checksum within a few."""
    slices = _numbered(tmp_path, 4)
    _read_all(slices, 1)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_read_all, args=(slices, 300)) for _ in range(2)]
    for child in children:
        child.start()
    _read_all(slices, 300)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
