import importlib.util
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from macaw_lit.data.media import CAUSES, Limits, has_audio, load, load_video
from macaw_lit.errors import MediaError

Clip = Callable[..., Path]
BACKENDS = ["auto", "pyav", *(["decord"] if importlib.util.find_spec("decord") else [])]


def numbered(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Grey frames [H,W,3] whose brightness is five times their number (modulo 50)."""
    return [np.full((*size, 3), 5 * (k % 50), np.uint8) for k in range(count)]


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of `numbered` frames, read off their brightness; coding moves it by 2 at most."""
    return [round(float(frame.mean()) / 5) for frame in frames]


def tone(seconds: float, rate: int = 16_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def refused(cause: str, path: Path, **arguments: Any) -> None:
    for backend in BACKENDS:
        with pytest.raises(MediaError) as caught:
            load_video(path, 6, backend, **arguments)
        assert caught.value.cause == cause, (backend, str(caught.value))
        assert cause in CAUSES
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [
        (24, 6, [2, 6, 10, 14, 18, 22]),
        (24, 1, [12]),
        (10, 4, [1, 3, 6, 8]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_frames_are_the_centres_of_equal_intervals(
    tmp_path: Path, clip: Clip, backend: Any, count: int, frames: int, expected: list[int]
) -> None:
    loaded = load_video(clip(tmp_path / "a.mp4", numbered(count)), frames, backend)
    assert loaded.shape == (frames, 48, 64, 3)
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous
    assert numbers(loaded) == expected


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize("gop", [{"g": "250", "bf": "3"}, {"g": "7", "bf": "2"}, {"g": "1"}])
def test_backends_agree_to_the_frame(tmp_path: Path, clip: Clip, name: str, gop: dict[str, str]) -> None:
    codec = "libx264" if name == "a.mp4" else "mpeg4"  # whose groups of pictures are open
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (45, 4, 4, 3), dtype=np.uint8)
    frames = [np.kron(c, np.ones((16, 16, 1), np.uint8)) for c in coarse]
    sound = None if name == "a.avi" else tone(4.5)  # FFmpeg's AVI with sound shows the first frame twice
    path = clip(tmp_path / name, frames, sound=sound, codec=codec, codec_options=gop)
    ours, theirs = (load_video(path, 8, backend).astype(int) for backend in ("pyav", BACKENDS[-1]))
    # The same pictures decoded by two releases of FFmpeg differ in the rounding of YUV to RGB: 3 was the most seen,
    # while these frames differ by 85 from one another on average.
    assert np.abs(ours - theirs).max() <= 4
    truth = [np.argmin([np.abs(frame - picture.astype(int)).mean() for picture in frames]) for frame in ours]
    assert truth == [2, 8, 14, 19, 25, 30, 36, 42]


def test_frames_are_chosen_by_time_where_the_rate_varies(tmp_path: Path) -> None:
    """Ten frames fill the first second, ten more last a second each: most centres lie among the slow ones."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for number, picture in enumerate(numbered(20)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if number < 10 else 10 * (number - 9)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for backend in BACKENDS:
        found = numbers(load_video(path, 10, backend))
        assert found[0] == 5
        assert all(10 <= number <= 19 for number in found[1:])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_display_matrix_turns_both_backends_alike(tmp_path: Path, clip: Clip, turns: int) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255  # top left
    path = clip(tmp_path / "a.mp4", [picture] * 4, turns=turns)
    clockwise = np.rot90(picture, -turns)
    for backend in BACKENDS:
        loaded = load_video(path, 2, backend)[0]
        assert loaded.shape == clockwise.shape
        assert np.abs(loaded.astype(int) - clockwise).mean() < 5, backend


def test_gif_is_a_video_too(tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in numbered(8)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert numbers(load_video(tmp_path / "a.gif", 4)) == [1, 3, 5, 7]


def test_load_needs_a_number_of_frames(tmp_path: Path, clip: Clip) -> None:
    path = clip(tmp_path / "a.mp4", numbered(4))
    assert load(path, "video", 2).shape == (2, 48, 64, 3)
    with pytest.raises(ValueError, match="frames=None"):
        load(path, "video")


def test_bad_files_are_refused_by_cause(tmp_path: Path, clip: Clip) -> None:
    refused("missing", tmp_path / "none.mp4")
    refused("not_a_file", tmp_path)
    (tmp_path / "empty.mp4").touch()
    refused("empty", tmp_path / "empty.mp4")
    for name in ("text.mp4", "text.txt"):
        (tmp_path / name).write_text("This is no video.\n" * 400)
        refused("unreadable", tmp_path / name)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(1).bytes(20_000))
    refused("unreadable", tmp_path / "noise.mp4")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.jpg")
    refused("unreadable", tmp_path / "picture.jpg")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused("no_video", tmp_path / "sound.mp4")


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mp4", {}), ("a.mkv", {})])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_cut_files_are_truncated(tmp_path: Path, clip: Clip, name: str, options: dict[str, str], share: float) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8))
    path = clip(tmp_path / name, frames, sound=tone(4.0), options=options)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused("truncated", path)


def test_a_hole_of_zeros_is_truncated(tmp_path: Path, clip: Clip) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8))
    data = bytearray(clip(tmp_path / "a.mp4", frames, options={"movflags": "faststart"}).read_bytes())
    data[len(data) // 4 :] = bytes(len(data) - len(data) // 4)
    (tmp_path / "a.mp4").write_bytes(data)
    refused("truncated", tmp_path / "a.mp4")


def test_limits_hold_before_decoding(tmp_path: Path, clip: Clip) -> None:
    path = clip(tmp_path / "a.mp4", numbered(20))
    refused("too_large", path, limits=Limits(video_side=63))
    refused("too_large", path, limits=Limits(media_bytes=99))
    refused("too_long", path, limits=Limits(video_seconds=1.9))
    refused("too_long", path, limits=Limits(video_frames=19))
    limits = Limits(video_side=64, video_seconds=2.0, video_frames=20)
    assert len(load_video(path, 6, limits=limits)) == 6


def test_playlists_cannot_reach_other_files(tmp_path: Path, clip: Clip) -> None:
    target = clip(tmp_path / "secret.ts", numbered(20))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{target.name}'\n"
    for name, text in {"a.m3u8": playlist, "a.mp4": playlist, "b.ffconcat": concat, "b.mp4": concat}.items():
        (tmp_path / name).write_text(text)
        refused("unreadable", tmp_path / name)


@pytest.mark.parametrize("name", ["-i x.mp4", "; rm -rf x.mp4", "a\nb.mp4", "größe 雪.mp4", "concat:a|b.mp4", "%d.mp4"])
def test_odd_names_are_only_names(tmp_path: Path, clip: Clip, name: str) -> None:
    clip(tmp_path / "plain.mp4", numbered(4), sound=tone(0.4)).rename(tmp_path / name)
    for backend in BACKENDS:
        assert numbers(load_video(tmp_path / name, 2, backend)) == [1, 3]
    assert has_audio(tmp_path / name)


def test_has_audio(tmp_path: Path, clip: Clip) -> None:
    assert has_audio(clip(tmp_path / "sound.mp4", numbered(4), sound=tone(0.4)))
    assert not has_audio(clip(tmp_path / "silent.mp4", numbered(4)))
    assert not has_audio(tmp_path / "none.mp4")


def test_a_hundred_opens_leak_nothing(tmp_path: Path, clip: Clip) -> None:
    path = clip(tmp_path / "a.mp4", numbered(20), sound=tone(2.0))
    descriptors = Path("/proc/self/fd")
    load_video(path, 2)
    before = len(list(descriptors.iterdir()))
    for backend in BACKENDS:
        for _ in range(50):
            load_video(path, 2, backend)
    assert len(list(descriptors.iterdir())) <= before


def test_damage_is_quiet_on_stderr(tmp_path: Path, clip: Clip) -> None:
    path = clip(tmp_path / "a.mp4", numbered(30), options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    data[-400:-200] = bytes(200)
    path.write_bytes(data)
    code = (
        "import sys; from macaw_lit.data.media import load_video\n"
        "from macaw_lit.errors import MediaError\n"
        "try: load_video(sys.argv[1], 6)\n"
        "except MediaError as error: print(error.cause)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, clip: Clip) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8))
    rng = np.random.default_rng(6)
    outcomes = set()
    for name in ("a.mp4", "a.mkv"):
        path = clip(tmp_path / name, frames, sound=tone(1.2))
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            broken = whole.copy()
            broken[rng.integers(0, len(whole), 8)] = rng.integers(0, 256, 8)
            path.write_bytes(broken.tobytes())
            try:
                outcomes.add(load_video(path, 3).shape[0])
            except MediaError as error:
                outcomes.add(error.cause)
            has_audio(path)
    assert outcomes <= {3, *CAUSES}
    assert 3 in outcomes
