import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from macaw_lit.data.demo.render import Sizes, main, render
from macaw_lit.data.demo.scenes import COLOURS
from macaw_lit.errors import ConfigError

SMALL = Sizes(images=24, videos=8, sounds=8, texts=100, heldout=8)


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(world, tmp_path):
    assert render(tmp_path / "again", seed=3, sizes=SMALL, workers=2)
    assert digests(tmp_path / "again") == digests(world)
    assert len(digests(world)) > 24 + 8 + 8 + 3 * 8


def test_another_seed_gives_another_world(world, tmp_path):
    render(tmp_path / "other", seed=4, sizes=SMALL, workers=1)
    other, one = digests(tmp_path / "other"), digests(world)
    common = [name for name in one if name in other and name.endswith((".jpg", ".wav"))]
    assert len(common) == 24 + 8 + 8 + 8
    assert all(one[name] != other[name] for name in common)


def test_a_complete_world_is_left_alone_and_other_settings_replace_it(tmp_path):
    root = tmp_path / "demo"
    tiny = Sizes(images=2, videos=1, sounds=1, texts=10, heldout=1)
    assert render(root, sizes=tiny, workers=1)
    before = (root / "world.json").stat().st_mtime_ns
    assert not render(root, sizes=tiny, workers=1)
    assert (root / "world.json").stat().st_mtime_ns == before
    assert render(root, seed=1, sizes=tiny, workers=1)
    assert read(root / "world.json")["seed"] == 1


def test_a_killed_render_is_started_over(tmp_path):
    root = tmp_path / "demo"
    command = [sys.executable, "-m", "macaw_lit.data.demo.render", f"root={root}", "images=3000", "workers=1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/coco/train2017/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("*/coco/train2017/*.jpg")), "it was killed in the midst of rendering"
    assert not root.exists()
    assert render(root, sizes=Sizes(images=2, videos=1, sounds=1, texts=10, heldout=1), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert len(list((root / "coco" / "train2017").iterdir())) == 2


def test_a_folder_with_other_things_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"no world\.json.*expected an empty or new folder"):
        render(tmp_path, sizes=SMALL, workers=1)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("argument", "taught"),
    [
        ("images", "expected key=value"),
        ("pictures=3", "root, seed, workers, images"),
        ("images=many", "images=4000"),
        ("images=0", "at least 1"),
        ("workers=0", "at least 1"),
    ],
)
def test_wrong_arguments_teach(argument, taught, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=taught):
        main([argument])
    assert not list(tmp_path.iterdir())


def test_the_folders_hold_what_the_annotations_name(world):
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        coco = read(world / "coco" / "annotations" / f"captions_{folder}.json")
        names = {image["file_name"] for image in coco["images"]}
        assert names == {path.name for path in (world / "coco" / folder).iterdir()}
        assert {row["image_id"] for row in coco["annotations"]} == {image["id"] for image in coco["images"]}
        assert {row["id"] for row in read(world / "coco" / f"generated_examples_coco_{split}.json")["data"]} <= names
        sounds = {image["file_name"] for image in read(world / "audio" / f"captions_{split}.json")["images"]}
        assert sounds == {path.name for path in (world / "audio" / split).iterdir()}
    videos = {path.stem for path in (world / "charades" / "Charades_v1_480").iterdir()}
    assert len(videos) == 16
    rows = []
    for split in ("train", "test"):
        with (world / "charades" / f"Charades_v1_{split}.csv").open(newline="") as file:
            rows += list(csv.DictReader(file))
    assert {row["id"] for row in rows} == videos
    assert all(len(row["descriptions"].split(";")) == 3 and float(row["length"]) == 2.4 for row in rows)
    dialogs = [
        row for split in ("train", "valid") for row in read(world / f"avsd/{split}_set4DSTC7-AVSD.json")["dialogs"]
    ]
    assert {row["image_id"] for row in dialogs} == videos
    assert all(len(row["dialog"]) > 1 and row["summary"] and row["caption"] for row in dialogs)


@pytest.mark.parametrize("kind", ["coco", "avsd", "audio"])
def test_no_medium_is_in_both_splits(world, kind):
    train, val = (
        {row["id"] for row in read(world / kind / f"generated_examples_{kind}_{split}.json")["data"]}
        for split in ("train", "val")
    )
    assert train
    assert val
    assert not train & val


def test_no_medium_is_there_twice_under_two_names(world):
    media = [digest for name, digest in digests(world).items() if name.endswith((".jpg", ".mp4", ".wav"))]
    assert len(set(media)) == len(media)


def test_no_text_input_is_in_both_splits(world):
    train, val = (
        {row["input"] for row in read(world / f"alpaca/alpaca_data_{split}.json")} for split in ("train", "val")
    )
    assert train
    assert val
    assert not train & val


def test_every_type_that_is_asked_is_listed(world):
    types = read(world / "question_types.json")
    asked = {row["type"] for path in world.glob("*/generated_examples_*") for row in read(path)["data"]}
    asked |= {row["type"] for path in world.glob("alpaca/*") for row in read(path)}
    assert asked <= set(types)
    assert {kind.partition(".")[0] for kind in asked} == {"image", "video", "audio", "av", "text"}
    assert all(set(kind) == {"media", "gating", "chance"} for kind in types.values())


def test_pictures_are_small_rgb_jpegs_without_chroma_subsampling(world):
    for path in (world / "coco").glob("*2017/*.jpg"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 64))
            assert all(layer[1:3] == (1, 1) for layer in picture.layer)


def test_sounds_are_pcm16_mono(world):
    for path in (world / "audio").glob("*/*.wav"):
        info = soundfile.info(path)
        assert (info.subtype, info.samplerate, info.channels, info.frames) == ("PCM_16", 16000, 1, 38400)


def test_clips_are_h264_and_aac_and_keep_their_colours(world):
    tracks = set()
    dialogs = [
        row for split in ("train", "valid") for row in read(world / f"avsd/{split}_set4DSTC7-AVSD.json")["dialogs"]
    ]
    captions = {row["image_id"]: row["caption"] for row in dialogs}
    for path in (world / "charades" / "Charades_v1_480").iterdir():
        with av.open(str(path)) as container:
            tracks.add(tuple(stream.codec_context.name for stream in container.streams))
            assert float(container.duration / av.time_base) == pytest.approx(2.4, abs=0.1)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.shape(frames) == (24, 64, 64, 3)
        words = captions[path.stem].split()
        for frame, told in ((frames[0], words[1]), (frames[-1], words[5])):
            assert largest_colour(frame) == told
    assert ("h264", "aac") in tracks
    assert tracks <= {("h264", "aac"), ("h264",)}


def largest_colour(frame: np.ndarray) -> str:
    """The named colour that most of the colourful pixels are nearest to."""
    pixels = frame.reshape(-1, 3).astype(float)
    pixels = pixels[np.ptp(pixels, axis=1) > 80]
    distances = np.linalg.norm(pixels[:, None] - np.array(list(COLOURS.values())), axis=2)
    nearest = np.bincount(distances.argmin(1), minlength=len(COLOURS))
    assert nearest.max() > 0.9 * nearest.sum()
    return list(COLOURS)[int(nearest.argmax())]
