"""Encoder inputs by memory and disk: the same bits as without, never those of another file or another preprocessing."""

import os
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from macaw_lit.data import prepared
from macaw_lit.data.media import Limits, name_of
from macaw_lit.data.media.disk import DiskCache
from macaw_lit.data.prepared import Prepared, pack, recipe, unpack
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.encoders.clip import ClipTransform
from macaw_lit.encoders.whisper import LogMel
from macaw_lit.errors import ConfigError, MediaError
from macaw_lit.types import Bytes, Decoded, MediaRef, MediaSpec, Sample, Turn

LIMIT = 2**32


@pytest.fixture
def real() -> dict[str, MediaSpec]:
    clip = ClipTransform(32)
    return {
        "image": MediaSpec("image", clip, 3, (3, 32, 32)),
        "video": MediaSpec("video", clip, 3, (4, 3, 32, 32), frames=4),
        "audio": MediaSpec("audio", LogMel(80, 300), 3, (80, 300)),
    }


@pytest.fixture
def media(tmp_path: Path, clip) -> dict[str, MediaRef]:
    """Noise: a JPEG, and an MP4 with sound, old enough that their time stamps can be trusted."""
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "picture.jpg")
    frames = [draw.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(12)]
    clip(tmp_path / "clip.mp4", frames, sound=draw.normal(0, 0.1, 20_000).astype(np.float32))
    paths = {"image": tmp_path / "picture.jpg", "video": tmp_path / "clip.mp4", "audio": tmp_path / "clip.mp4"}
    return {kind: MediaRef(kind, path) for kind, path in paths.items()}


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test are young; that those are not kept has a test of its own."""
    monkeypatch.setattr(prepared, "SETTLED_NS", 0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    names: list[str] = []
    load = prepared.media.load

    def counting(path, *rest):
        names.append(name_of(path))
        return load(path, *rest)

    monkeypatch.setattr(prepared.media, "load", counting)
    return names


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("max_bytes", [0, 10**8])
@pytest.mark.parametrize("on_disk", [False, True])
def test_all_layers_give_the_same_bits(real, media, counted, tmp_path, max_bytes, on_disk):
    plain = Prepared(real)
    wanted = {kind: plain.load(kind, ref) for kind, ref in media.items()}
    counted.clear()
    layered = Prepared(real, max_bytes, DiskCache(tmp_path / "cache", LIMIT) if on_disk else None)
    for _ in range(3):
        for kind, ref in media.items():
            values = layered.load(kind, ref)
            assert values.dtype == wanted[kind].dtype
            assert values.shape == real[kind].shape
            assert values.numpy().tobytes() == wanted[kind].numpy().tobytes()
    assert len(counted) == (3 if max_bytes or on_disk else 9)
    assert layered.size == (3 * 1024 + 4 * 3 * 1024 + 2 * 3 * 1024 + 80 * 300 * 4 if max_bytes else 0)


def test_another_process_finds_it_whatever_the_file_is_called(real, media, counted, tmp_path):
    Prepared(real, disk=DiskCache(tmp_path / "cache", LIMIT)).load("image", media["image"])
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(Path(media["image"].path).read_bytes())
    Prepared(real, disk=DiskCache(tmp_path / "cache", LIMIT)).load("image", MediaRef("image", copy))
    assert counted == ["picture.jpg"]


def test_a_file_that_changes_is_decoded_anew_even_with_its_old_size_and_time(real, counted, tmp_path):
    path, levels = tmp_path / "grey.png", (10, 200, 10)
    layered = Prepared(real, disk=DiskCache(tmp_path / "cache", LIMIT))
    found = []
    for level in levels:
        Image.new("RGB", (8, 8), (level, level, level)).save(path)
        path.write_bytes(path.read_bytes().ljust(200, b"\0"))
        os.utime(path, (10**9, 10**9))
        found.append(layered.load("image", MediaRef("image", path)))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert counted == ["grey.png"] * 2, "the third has the content of the first"


def test_a_file_of_this_moment_is_not_kept(real, media, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "SETTLED_NS", 10**11)
    layered = Prepared(real, disk=DiskCache(tmp_path / "cache", LIMIT))
    for _ in range(2):
        layered.load("image", media["image"])
    assert len(counted) == 2
    assert not entries(tmp_path / "cache")


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(real, media, tmp_path, monkeypatch):
    load = prepared.media.load

    def slow(path, *rest):
        array = load(path, *rest)
        Image.new("RGB", (9, 9)).save(path)
        return array

    monkeypatch.setattr(prepared.media, "load", slow)
    Prepared(real, disk=DiskCache(tmp_path / "cache", LIMIT)).load("image", media["image"])
    assert not entries(tmp_path / "cache")


def test_errors_are_not_kept(real, tmp_path):
    layered = Prepared(real, 10**6, DiskCache(tmp_path / "cache", LIMIT))
    path = tmp_path / "late.jpg"
    for content, cause in ((None, "missing"), (b"", "empty"), (b"\xff\xd8\xff" + b"x" * 50, "truncated")):
        if content is not None:
            path.write_bytes(content)
        for _ in range(2):
            with pytest.raises(MediaError) as error:
                layered.load("image", MediaRef("image", path))
            assert error.value.cause == cause
    Image.new("RGB", (8, 8), "red").save(path)
    assert layered.load("image", MediaRef("image", path)).shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["folder", "pipe"])
def test_what_is_no_file_is_not_opened(real, tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(MediaError) as error:
        Prepared(real, disk=DiskCache(tmp_path / "c", LIMIT)).load("image", MediaRef("image", tmp_path / name))
    assert error.value.cause == "not_a_file"


def test_damaged_entries_are_made_again(real, media, counted, tmp_path):
    layered = Prepared(real, disk=DiskCache(tmp_path / "cache", LIMIT))
    wanted = layered.load("audio", media["audio"])
    (entry,) = entries(tmp_path / "cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-5] + b"12345")
    assert torch.equal(layered.load("audio", media["audio"]), wanted)
    assert entry.read_bytes() == whole
    assert len(counted) == 2


@pytest.mark.parametrize("max_bytes", [0, 10**8])
@pytest.mark.parametrize("on_disk", [False, True])
def test_media_that_a_row_holds_are_decoded_once(real, media, counted, tmp_path, max_bytes, on_disk):
    """By their content alone: of two of one name each gives its own values, whatever the name of a third."""
    layered = Prepared(real, max_bytes, DiskCache(tmp_path / "cache", LIMIT) if on_disk else None)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    noise, red = Path(media["image"].path).read_bytes(), (tmp_path / "red.png").read_bytes()
    refs = [MediaRef("image", Bytes(data, name)) for data, name in ((noise, "a"), (red, "a"), (noise, "b"))]
    wanted = [Prepared(real).load("image", ref) for ref in refs]
    counted.clear()
    for _ in range(3):
        for ref, values in zip(refs, wanted, strict=True):
            assert torch.equal(layered.load("image", ref), values)
    assert len(counted) == (2 if max_bytes or on_disk else 9)


def test_arrays_are_never_kept(real, tmp_path):
    layered = Prepared(real, 10**6, DiskCache(tmp_path / "cache", LIMIT))
    layered.load("image", Decoded("image", "picture", np.zeros((8, 8, 3), np.uint8)))
    assert layered.size == 0
    assert not entries(tmp_path / "cache")


def test_the_least_recently_used_leaves_memory_first(specs, tmp_path):
    refs = []
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        refs.append(MediaRef("image", tmp_path / f"{number}.png"))
    size = 3 * 4 * 4 + 3 * 256 * 4
    layered = Prepared(specs, 2 * size)
    for index in (0, 1, 0, 2):
        layered.load("image", refs[index])
    assert layered.size == 2 * size
    for ref in refs:
        Path(ref.path).unlink()
    layered.load("image", refs[0])
    layered.load("image", refs[2])
    with pytest.raises(MediaError):
        layered.load("image", refs[1])
    small = Prepared(specs, size - 1)
    Image.new("RGB", (8, 8)).save(refs[0].path)
    small.load("image", refs[0])
    assert small.size == 0


def bits(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        (bits(np.random.default_rng(0).integers(0, 256, (4, 3, 9, 7)) / 255), True),
        (bits(np.arange(256 * 3).reshape(3, 16, 16)), True),
        (bits(np.arange(257 * 3).reshape(3, 257, 1)), False),
        (bits(np.array([0.0, -0.0, np.nan, -np.nan, np.inf, 1e-42]).reshape(1, 2, 3)), True),
        (bits(np.random.default_rng(0).normal(size=(80, 30))), False),
        (torch.randn(3, 4, 4).half(), False),
        (torch.randn(3, 8, 4).transpose(1, 2), True),
    ],
)
def test_packing_is_exact(values, packed):
    kept = pack(values)
    assert ("levels" in kept) == packed
    back = unpack(kept)
    assert (back.dtype, back.shape) == (values.dtype, values.shape)
    assert back.numpy().tobytes() == values.contiguous().numpy().tobytes()


def test_a_picture_takes_a_byte_a_value(real, media):
    kept = pack(Prepared(real).load("video", media["video"]))
    assert kept["levels"].dtype == torch.uint8
    assert kept["palette"].shape == (3, 256)


def test_whatever_changes_the_values_changes_the_recipe(real, monkeypatch):
    image, video, audio = real["image"], real["video"], real["audio"]
    dark = ClipTransform(32)
    dark.steps.transforms[-1].mean = (0.1, 0.1, 0.1)
    cropped = ClipTransform(32)
    del cropped.steps.transforms[0]
    variants = [
        image,
        video,
        audio,
        replace(image, transform=ClipTransform(48), shape=(3, 48, 48)),
        replace(image, transform=dark),
        replace(image, transform=cropped),
        replace(video, frames=6, shape=(6, 3, 32, 32)),
        replace(audio, transform=LogMel(128, 300), shape=(128, 300)),
        replace(audio, transform=LogMel(80, 200), shape=(80, 200)),
    ]
    recipes = [recipe(variant) for variant in variants]
    assert len(set(recipes)) == len(variants)
    assert recipe(replace(image, transform=ClipTransform(32), num_tokens=9)) == recipes[0]
    assert recipe(image, Limits(image_pixels=10)) != recipes[0]
    monkeypatch.setattr(prepared, "version", lambda library: "99")
    assert recipe(image) != recipes[0]


def test_the_recipe_does_not_depend_on_threads(real):
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(recipe(real["audio"]))
    torch.set_num_threads(1)
    assert len(found) == 1


def test_a_wrong_shape_is_refused(specs, tmp_path, picture):
    wrong = {"image": replace(specs["image"], shape=(3, 8, 8))}
    with pytest.raises(ConfigError, match=r"\(3, 4, 4\).*\(3, 8, 8\)"):
        Prepared(wrong, disk=DiskCache(tmp_path / "cache", LIMIT)).load("image", MediaRef("image", picture(1)))


def test_the_preprocessor_takes_a_folder_and_a_limit(tokenizer, specs, tmp_path, picture, counted):
    turns = (Turn("user", "A?", (MediaRef("image", picture(77)),)), Turn("assistant", "a"))
    row = Sample(turns, "test/0", "test")
    settings = {"cache_dir": tmp_path / "cache", "cache_gb": 0.01}
    values = [Preprocessor(tokenizer, specs, **settings)(row).media["image"] for _ in range(2)]
    assert torch.equal(*values)
    assert torch.equal(values[0], Preprocessor(tokenizer, specs)(row).media["image"])
    assert counted == ["grey77.jpg"] * 2
    with pytest.raises(ConfigError, match="a cache of 0 bytes"):
        Preprocessor(tokenizer, specs, cache_dir=tmp_path / "cache", cache_gb=0)


def test_a_disk_that_is_really_full(real, media, tmp_path):
    """A file system of 64 KiB, where this machine lets us make one."""
    mount = tmp_path / "mount"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount a file system")
    try:
        layered = Prepared(real, disk=DiskCache(mount / "cache", LIMIT))
        wanted = Prepared(real).load("audio", media["audio"])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = layered.load("audio", media["audio"])
            layered.load("image", media["image"])
        assert torch.equal(found, wanted)
        assert "No space left" in str(said[0].message)
        assert len(said) == 1
        assert not entries(mount / "cache")
    finally:
        subprocess.run(["umount", str(mount)], check=True)
