"""The command as a user meets it: sets from a site on this machine, unpacked, described, read; mistakes in a line."""

import hashlib
import io
import json
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from macaw_lit.cli import conf_dir
from macaw_lit.data.describe import describe
from macaw_lit.data.download import main
from macaw_lit.data.fetch import Remote
from macaw_lit.data.unpack import is_unpacked, unpack
from macaw_lit.errors import ConfigError, DataError
from macaw_lit.types import Sample

PICTURE = "COCO_train2014_000000000009.jpg"
CSV = "id,subject,script,descriptions\nAB12C,Q,A script.,A person sits.\n"
ASK = {"instruction": "What is this?", "response": "A cup."}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def world(site, tmp_path, clip):
    """The site has every public file in little, laid out as the real one; returns the words that point there."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "JPEG")
    film = clip(tmp_path / "film.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3).read_bytes()
    captions = {"images": [{"id": 9, "file_name": PICTURE}], "annotations": [{"image_id": 9, "caption": "A cup."}]}
    captions17 = {**captions, "images": [{"id": 9, "file_name": "000000000009.jpg"}]}
    files = {
        ("alpaca", "alpaca_data"): json.dumps([{"instruction": "Hi?", "input": "", "output": "Hi."}]).encode(),
        ("coco", "captions2014"): zipped({"annotations/captions_train2014.json": json.dumps(captions).encode()}),
        ("coco", "captions2017"): zipped({"annotations/captions_train2017.json": json.dumps(captions17).encode()}),
        ("coco", "train2014"): zipped({"train2014/": b"", f"train2014/{PICTURE}": picture.getvalue()}),
        ("coco", "val2014"): zipped({"val2014/COCO_val2014_000000000010.jpg": picture.getvalue()}),
        ("charades", "annotations"): zipped({"Charades/Charades_v1_train.csv": CSV.encode(), "__MACOSX/x": b"x"}),
        ("charades", "videos"): zipped({"Charades_v1_480/AB12C.mp4": film}),
        ("macaw", "generated_coco"): json.dumps({"data": [{"id": PICTURE, **ASK}]}).encode(),
        ("macaw", "generated_avsd"): json.dumps({"data": [{"id": "AB12C", **ASK}]}).encode(),
    }
    words = ["patience.attempts=2", "patience.backoff=0.01"]
    for (dataset, name), content in files.items():
        site.files[f"/{dataset}/{name}"] = content
        place = f"datasets.{dataset}.files.{name}"
        digest = "null" if name == "videos" else f"sha256:{hashlib.sha256(content).hexdigest()}"
        words += [
            f"{place}.url={site.url}/{dataset}/{name}",
            f"{place}.digest={digest}",
            f"{place}.bytes={len(content)}",
        ]
    return words


@pytest.fixture
def get(call, tmp_path, world):
    return lambda *words: call(main, tmp_path, "root=my data", *world, *words)


def test_macaw_brings_all_that_its_mixture_reads_and_a_second_run_nothing(get, site, tmp_path):
    code, out, err = get("dataset=macaw")
    assert (code, err) == (0, "")
    assert out.startswith("macaw: instruction data CC BY 4.0")
    assert "no checksum is published; this one is noted in Charades_v1_480.zip.sha256" in out
    root, asked = tmp_path / "my data", len(site.asked)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=["data=macaw", f"paths.data_dir='{root}'"])
    for name, kinds in {"text": [], "image": ["image"], "video": ["video"]}.items():
        (row,) = instantiate(cfg.data.train[name].read)()
        assert isinstance(row, Sample)
        assert [ref.kind for ref in row.turns[0].media] == kinds
    for file, media in {"alpaca_data.json": None, "generated_examples_coco.json": root / "coco"}.items():
        found = describe(root / file, media)
        assert (found.rows, found.usable) == (1, 1)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name[0] != "."}
    code, out, err = get("dataset=macaw")
    assert (code, err, len(site.asked)) == (0, "", asked)
    assert out.count("verified, left as it is") == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_coco_and_charades_lie_where_their_readers_look(get, tmp_path):
    assert get("dataset=coco")[0] == get("dataset=charades")[0] == 0
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for reader in ("coco", "charades"):
            cfg = compose("train", overrides=[f"+reader@x={reader}", f"paths.data_dir='{tmp_path / 'my data'}'"])
            (row,) = instantiate(cfg.x.read)()
            assert isinstance(row, Sample)
    assert not list(tmp_path.rglob("__MACOSX"))


def test_an_archive_may_be_deleted_and_what_is_missing_comes_back(get, site, tmp_path):
    get("dataset=coco", "only=[train2014]")
    folder = tmp_path / "my data" / "coco"
    (folder / "train2014.zip").unlink()
    code, out, _ = get("dataset=coco", "only=[train2014]")
    assert (code, len(site.asked)) == (0, 1)
    assert "unpacked in" in out
    (folder / "train2014" / PICTURE).unlink()
    code, out, _ = get("dataset=coco", "only=[train2014]")
    assert (code, len(site.asked)) == (0, 2)
    assert "1 files unpacked" in out
    assert (folder / "train2014" / PICTURE).is_file()


def test_what_must_be_fetched_by_hand_is_said_until_it_is_there(get, tmp_path):
    code, out, err = get("dataset=avsd")
    assert code == 1
    assert err == "error: 2 files are to be fetched by hand, see above: train, valid; then run the same command again\n"
    target = "my data/avsd/train_set4DSTC7-AVSD.json"
    assert f"train: {target}: to be fetched by hand from https://github.com/hudaAlamri/" in out
    (tmp_path / "my data/avsd").mkdir()
    for split in ("train", "valid"):
        (tmp_path / f"my data/avsd/{split}_set4DSTC7-AVSD.json").write_text('{"dialogs": []}')
    code, out, _ = get("dataset=avsd")
    assert (code, f"train: {target}: there" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=imagenet"], "dataset=imagenet: expected one of alpaca, coco, charades, avsd, macaw"),
        (["dataset=coco", "only=[train2015]"], "only: 'train2015' is no file of coco, expected some of captions2014"),
        (["dataset=alpaca", "datasets.alpaca.files.alpaca_data.url=ftp://x/y"], "begins with https:// or http://"),
        (["dataset=alpaca", "datasets.alpaca.files.alpaca_data.bytes=7"], "bytes are there, expected 7"),
        (["dataset=alpaca", f"datasets.alpaca.files.alpaca_data.digest=md5:{'0' * 32}"], "set aside as"),
        (["dataset=alpaca", "datasets.alpaca.files.alpaca_data.url=http://127.0.0.1:1/"], "2 tries in a row failed"),
        (["dataset=alpaca", "root=film.mp4"], "film.mp4: cannot be written (File exists)"),
        (["dataset=alpaca", "onyl=[x]"], "onyl: no such key; did you mean only?"),
        ([], "dataset must be given"),
    ],
)
def test_mistakes_are_one_line(get, words, message):
    code, _, err = get(*words)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: ")
    assert message in err


def test_two_at_once_are_refused(get, tmp_path):
    (tmp_path / "my data").mkdir()
    with FileLock(tmp_path / "my data" / ".download.lock"):
        code, _, err = get("dataset=alpaca")
    assert (code, "is being filled by another process" in err) == (1, True)


def link(packed: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    packed.writestr(info, "/etc/passwd")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\..\\x", "C:/x", None])
def test_archives_that_lead_outside_are_refused_whole(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("good", "x")
        link(packed) if name is None else packed.writestr(name, "x")
    with pytest.raises(DataError, match="is a link or leads outside; do not use this archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out", "", lambda *_: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_only_what_is_missing_is_unpacked(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({"a": b"12", "b/c": b"345"}))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"old")
    (tmp_path / "a").write_bytes(b"half a file")
    assert unpack(tmp_path / "a.zip", tmp_path, "", lambda *_: None) == 1
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b" / "c").read_bytes()) == (b"12", b"old")
    assert is_unpacked(tmp_path / "a.zip", tmp_path)
    (tmp_path / "a").unlink()
    assert not is_unpacked(tmp_path / "a.zip", tmp_path)


@pytest.mark.parametrize(
    ("content", "inside", "message"),
    [
        (b"PK is not enough", "", "damaged or no zip"),
        (zipped({"a": b"x" * 999})[:-60], "", "damaged or no zip"),
        (zipped({"a": b"abc" * 999}).replace(b"K\x05", b"K\x05", 1)[:40] + b"\xff" * 4, "", "damaged or no zip"),
        (zipped({"a": b"x"}), "Charades/", "nothing in it under 'Charades/'"),
    ],
)
def test_damaged_archives_are_one_line(tmp_path, content, inside, message):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "a.zip", tmp_path / "out", inside, lambda *_: None)


def test_a_member_with_a_wrong_sum_gets_no_name(tmp_path):
    content = bytearray(zipped({"a": b"abc" * 999}))
    content[content.index(b"a", 30) + 5] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="damaged or no zip"):
        unpack(tmp_path / "a.zip", tmp_path / "out", "", lambda *_: None)
    assert not (tmp_path / "out" / "a").exists()


def test_every_public_file_has_sound_facts(tmp_path):
    sets = yaml.safe_load((conf_dir() / "download.yaml").read_text())["datasets"]
    files = [file for about in sets.values() for file in about["files"].values() if isinstance(file, dict)]
    for file in files:
        assert not Path(file["path"]).is_absolute()
        if file["url"] is None:
            assert file["page"].startswith("https://")
            assert file["how"]
        else:
            Remote(file["url"], tmp_path / file["path"], file["bytes"], file["digest"])
    assert all(about["licence"] for about in sets.values())
    with pytest.raises(ConfigError):
        Remote("files/a", tmp_path)
