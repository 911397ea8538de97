import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from macaw_lit.data.media import CAUSES, Limits, load_image, probe
from macaw_lit.errors import MediaError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(left: tuple[int, ...], right: tuple[int, ...], size: tuple[int, int] = (32, 16)) -> np.ndarray:
    """A picture [H,W,C] of two colours side by side."""
    picture = np.empty((size[1], size[0], len(left)), np.uint8)
    picture[:, : size[0] // 2], picture[:, size[0] // 2 :] = left, right
    return picture


def refused(path: Path, cause: str, limits: Limits | None = None) -> str:
    with pytest.raises(MediaError) as caught:
        load_image(path, limits or Limits())
    message = str(caught.value)
    assert caught.value.cause == cause
    assert cause in CAUSES
    assert "\n" not in message
    assert path.name.encode("unicode_escape").decode()[:5] in message
    assert "expected" in message
    return message


def test_png_comes_back_to_the_bit(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, picture)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_tiny_pictures_are_pictures(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.new("RGB", shape, RED).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (shape[1], shape[0], 3)


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    rgb = Image.fromarray(halves(RED, BLUE))
    for name, picture in {
        "cmyk.jpg": rgb.convert("CMYK"),
        "palette.png": rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        "alpha.png": rgb.convert("RGBA"),
        "a.webp": rgb,
        "a.bmp": rgb,
        "a.tiff": rgb.convert("CMYK"),
    }.items():
        picture.save(tmp_path / name, **({"quality": 95} if name.endswith(("jpg", "webp")) else {}))
        loaded = load_image(tmp_path / name)
        assert loaded.shape == (16, 32, 3), name
        # Lossy coders keep flat colours within 6 of 255, away from the edge.
        assert np.abs(loaded[8, 4].astype(int) - RED).max() <= 6, name
        assert np.abs(loaded[8, 28].astype(int) - BLUE).max() <= 6, name


def test_grey_bilevel_and_sixteen_bits_scale_to_bytes(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "sixteen.png")
    Image.fromarray((levels // 257).astype(np.uint8)).save(tmp_path / "eight.png")
    for name in ("sixteen.png", "eight.png"):
        np.testing.assert_array_equal(load_image(tmp_path / name)[0], [[v] * 3 for v in (0, 1, 128, 255)])
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "float.tiff")
    assert load_image(tmp_path / "float.tiff")[0, :, 0].tolist() == [0, 127, 255]
    Image.new("1", (2, 2), 1).save(tmp_path / "bits.png")
    assert (load_image(tmp_path / "bits.png") == 255).all()


def test_transparency_shows_white(tmp_path: Path) -> None:
    Image.fromarray(halves((255, 0, 0, 255), (0, 0, 255, 0))).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded[0, 0].tolist() == [255, 0, 0]
    assert loaded[0, -1].tolist() == [255, 255, 255]


def test_exif_turns_the_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    Image.fromarray(halves(RED, BLUE)).save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.shape == (32, 16, 3)
    assert loaded[0, 0].tolist() == list(RED)
    assert loaded[-1, 0].tolist() == list(BLUE)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_give_their_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert load_image(tmp_path / f"a.{suffix}")[4, 4].tolist() == list(RED)


def test_bad_files_are_refused_by_cause(tmp_path: Path) -> None:
    refused(tmp_path / "none.jpg", "missing")
    refused(tmp_path / "na\nme.jpg", "missing")
    refused(tmp_path / ("x" * 300), "missing")
    refused(tmp_path, "not_a_file")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "empty")
    (tmp_path / "text.jpg").write_text("This is no picture.\n" * 40)
    refused(tmp_path / "text.jpg", "unreadable")
    (tmp_path / "noise.jpg").write_bytes(np.random.default_rng(1).bytes(5000))
    refused(tmp_path / "noise.jpg", "unreadable")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    refused(tmp_path / "drawing.eps", "unreadable")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.005, 0.3, 0.9])
def test_truncated_pictures(tmp_path: Path, suffix: str, share: float) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "truncated")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000), (8_000, 6_251)])
def test_huge_pictures_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    start = time.perf_counter()
    assert "50000000" in refused(tmp_path / "bomb.png", "too_large")
    assert time.perf_counter() - start < 0.5


def test_limits_are_the_callers(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "too_large", Limits(image_pixels=99))
    refused(tmp_path / "a.png", "too_large", Limits(image_bytes=9))
    assert load_image(tmp_path / "a.png", Limits(image_pixels=100)).shape == (10, 10, 3)


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    outcomes = set()
    for suffix in ("jpg", "png", "gif", "webp", "tiff"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(halves(RED, BLUE)).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
            path.write_bytes(broken.tobytes())
            try:
                outcomes.add(load_image(path).dtype.name)
            except MediaError as error:
                outcomes.add(error.cause)
    assert outcomes <= {"uint8", "truncated", "unreadable", "too_large"}
    assert len(outcomes) > 1


def test_damage_behind_the_first_frame_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    whole = path.read_bytes()
    second = [place for place in range(len(whole)) if whole[place : place + 2] == b"\x21\xf9"][1]
    path.write_bytes(whole[: second + 18])  # 8 bytes of graphic control and 10 of the frame's own header
    assert load_image(path).shape == (4, 4, 3)
    assert "animated" in probe(path, "image")
