"""Packed data against the loose files: the same samples and batches, whatever stopped the packing on the way."""

import hashlib
import itertools
import json
import os
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import webdataset
import yaml
from PIL import Image

from macaw_lit.data import shards
from macaw_lit.data.collate import Collator
from macaw_lit.data.datamodule import MacawDataModule, Source
from macaw_lit.data.doctor.examine import Medium, Verdict, examine
from macaw_lit.data.mix import MixtureSampler
from macaw_lit.data.pack import main, pack
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.rows import Loader, Rows
from macaw_lit.data.sources import packed
from macaw_lit.errors import DataError
from macaw_lit.types import Bytes, MediaRef, Rejection, Sample, Slice, Turn

SHARD = 20_000  # bytes: several rows, so that the world fills several tars


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, clip: Callable[..., Path]) -> Path:
    """Eight pictures, two of them alike, a damaged one, two films with sound, and two sounds."""
    root = tmp_path_factory.mktemp("world")
    draw = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(root / f"{number}.jpg")
    (root / "7.jpg").write_bytes((root / "6.jpg").read_bytes())
    (root / "bad.jpg").write_bytes((root / "0.jpg").read_bytes()[:200])
    for number in range(2):
        sound = (0.3 * np.sin(np.arange(8000) / (5 + number))).astype(np.float32)
        soundfile.write(root / f"{number}.wav", sound, 16_000)
        frames = [draw.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(6)]
        clip(root / f"{number}.mp4", frames, sound=sound)
    return root


def read(root: Path, bad: bool = False) -> Iterator[Sample | Rejection]:
    """Rows on pictures, on films with sound, on two media, and on none; odd texts; more than one turn."""
    image = [MediaRef("image", root / f"{number}.jpg") for number in range(8)]
    films = [(MediaRef("video", root / f"{n}.mp4"), MediaRef("audio", root / f"{n}.mp4")) for n in range(2)]
    media = [(ref,) for ref in (*image, image[0])] + [*films, (image[1], image[2]), ()]
    media += [(MediaRef("audio", root / "0.wav"),), films[0], ()]
    for number, refs in enumerate(media):
        again = (image[number % 8],) if number % 5 == 4 else ()
        turns = [Turn("user", f"What of {number}, \x7f\u2028 «é»?\n", refs), Turn("assistant", f"It is {number}.")]
        more = [Turn("user", "And?", again), Turn("assistant", "That is all.")]
        meta = {"type": "made", "odd": [None, 1.5, "\ud800"], "number": number}
        yield Sample(tuple(turns + more if number % 3 else turns), f"made/{number}", "made", meta)
        if bad and number == 3:
            yield Rejection("missing_key", "made[3]", "no 'response'")
            for name in ("bad.jpg", "gone.jpg"):
                lost = (image[0], MediaRef("image", root / name))
                yield Sample((Turn("user", "What?", lost), turns[1]), name, "made")


def looked_at(media: Iterable[Medium]) -> dict[Medium, Verdict]:
    return {medium: examine(medium, "header") for medium in media}


def packing(root: Path, folder: Path, bad: bool = False) -> dict[str, Any]:
    return pack(Source(partial(read, root, bad)), folder, SHARD, looked_at, "train/made", max_skip_rate=0.5)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "made"
    packing(world, folder)
    return folder


def plain(sample: Sample, slices: bool) -> tuple[Any, ...]:
    """A sample with its media by name and content."""

    def content(ref: MediaRef) -> tuple[str, str, bytes]:
        if not slices:
            assert isinstance(ref.path, Path)
            return ref.kind, ref.path.name, ref.path.read_bytes()
        assert isinstance(ref.path, Slice)
        data = Path(ref.path.path).read_bytes()[ref.path.offset : ref.path.offset + ref.path.size]
        assert hashlib.sha256(data).hexdigest() == ref.path.sha256
        return ref.kind, ref.path.name, data

    turns = [(turn.role, turn.text, [content(ref) for ref in turn.media]) for turn in sample.turns]
    return sample.uid, sample.source, sample.meta, turns


def test_samples_come_back_as_they_were_and_media_byte_for_byte(world: Path, folder: Path) -> None:
    loose, back = list(read(world)), list(packed.read(folder))
    assert [plain(sample, True) for sample in back] == [plain(sample, False) for sample in loose]
    assert len(list(folder.glob("*.tar"))) > 2


def test_a_medium_is_stored_once_and_tar_and_webdataset_read_the_shards(world: Path, folder: Path) -> None:
    tars = sorted(folder.glob("*.tar"))
    members = [
        line for tar in tars for line in subprocess.check_output(["tar", "-tf", tar], text=True, timeout=60).split()
    ]
    loose = list(read(world))
    assert Counter(name.rpartition(".")[2] for name in members) == {"json": len(loose), "jpg": 7, "mp4": 2, "wav": 1}
    found = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False))
    rows = [json.loads(sample["json"]) for sample in found]
    assert [row["uid"] for row in rows] == [sample.uid for sample in loose]
    assert found[0]["0.jpg"] == (world / "0.jpg").read_bytes()
    assert found[11]["__key__"] == "000000011"
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        data = (folder / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert len(data) <= SHARD + 10_000  # the texts of a row, and the end of the tar, come on top of its media
    with tarfile.open(tars[0]) as tar:
        assert {(member.mtime, member.uid, member.gname) for member in tar} == {(0, 0, "")}


def test_what_cannot_be_used_is_left_out_and_counted(world: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 of \d+ rows were left out .*max_skip_rate=0.01"):
        pack(Source(partial(read, world, True)), tmp_path / "strict", SHARD, looked_at, "train/all")
    assert not (tmp_path / "strict").exists()
    index = packing(world, tmp_path / "made", bad=True)
    assert index["rejected"] == {"missing": 1, "missing_key": 1, "truncated": 1}
    assert index["seen"] == index["rows"] + sum(index["rejected"].values()) == len(list(read(world, True)))
    assert {**files(tmp_path / "made"), "index.json": b""} == {**files(folder), "index.json": b""}
    none = Source(lambda: iter([Rejection("not_json", "x:1")]))
    with pytest.raises(DataError, match=r"no usable row.*not_json"):
        pack(none, tmp_path / "none", SHARD, looked_at, "train/none")


def test_media_that_rows_hold_are_packed_and_compared_by_content(world: Path, tmp_path: Path) -> None:
    def held(data: bytes) -> Iterator[Sample]:
        ref = MediaRef("image", Bytes(data, "image in the row.jpg"))
        yield Sample((Turn("user", "What?", (ref,)), Turn("assistant", "That.")), "s/0", "s")

    one, other = ((world / name).read_bytes() for name in ("0.jpg", "1.jpg"))
    for _ in range(2):
        pack(Source(lambda: held(one)), tmp_path / "made", SHARD, looked_at, "train/made")
        assert [plain(sample, True)[3] for sample in packed.read(tmp_path / "made")] == [
            [("user", "What?", [("image", "image in the row.jpg", one)]), ("assistant", "That.", [])]
        ]
    with pytest.raises(DataError, match="holds other data"):
        pack(Source(lambda: held(other)), tmp_path / "made", SHARD, looked_at, "train/made")


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_write_loses_nothing_and_the_rerun_gives_the_same_bytes(
    world: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """`after`: the file got its name; else only a part of its content was written beside it."""
    write, wanted = shards.write_whole, files(folder)
    for stop in itertools.count():
        left = itertools.count()
        out = tmp_path / str(stop)

        def fragile(path: Path, data: bytes, left: Iterator[int] = left, stop: int = stop) -> None:
            if next(left) != stop:
                return write(path, data)
            if after:
                write(path, data)
            else:
                path.with_name(f"{path.name}.part").write_bytes(data[: len(data) // 2])
            raise Killed

        monkeypatch.setattr(shards, "write_whole", fragile)
        try:
            packing(world, out)
        except Killed:
            if out.joinpath("index.json").exists() and not after:
                with pytest.raises(DataError, match="run the same pack command again"):
                    list(packed.read(out))
            monkeypatch.setattr(shards, "write_whole", write)
            packing(world, out)
            assert files(out) == wanted, stop
        else:
            break
    assert stop > 8


def test_other_data_or_files_are_never_mixed_in(world: Path, folder: Path, tmp_path: Path) -> None:
    before = files(folder)
    for source, size in ((partial(read, world), SHARD + 1), (lambda: list(read(world))[1:], SHARD)):
        with pytest.raises(DataError, match="remove the folder"):
            pack(Source(source), folder, size, looked_at, "made")
    fewer = Source(lambda: itertools.islice(read(world), 9))
    with pytest.raises(DataError, match="remove the folder"):
        pack(fewer, folder, SHARD, looked_at, "made")
    assert files(folder) == before
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="another folder"):
        packing(world, tmp_path)
    assert files(tmp_path) == {"letter.txt": b"mine"}


def test_a_medium_that_has_changed_since_is_noticed(world: Path, tmp_path: Path) -> None:
    for path in world.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    packing(tmp_path, out)
    data = bytearray((tmp_path / "3.jpg").read_bytes())
    data[-10] ^= 1
    (tmp_path / "3.jpg").write_bytes(data)
    with pytest.raises(DataError, match="changed since"):
        packing(tmp_path, out)


def test_a_full_disk_is_one_error(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left.*it goes on"):
        packing(world, tmp_path / "out")


@pytest.fixture
def modules(world: Path, folder: Path, tokenizer: Any, specs: Any) -> list[MacawDataModule]:
    """Of the loose files, and of the packed ones: a mixture of two sources, one with a count."""
    made = []
    for read_rows in (partial(read, world), partial(packed.read, folder)):
        sources = {"all": Source(read_rows), "some": Source(read_rows, 7)}
        module = MacawDataModule(sources, {"held": Source(read_rows, 6)}, partial(Preprocessor, max_length=300), 2)
        module.attach(tokenizer, specs)
        module.setup("fit")
        made.append(module)
    return made


def loader(module: MacawDataModule, rank: int, world: int, workers: int, epoch: int, start: int = 0) -> Loader:
    """As the data module makes it for one of several processes."""
    samples = module.samples["train"]
    counts = [source.count for source in module.sources["train"].values()]
    mixture = MixtureSampler([len(rows) for rows in samples.values()], counts, 3, False, rank, world)
    mixture.epoch, mixture.position = epoch, start
    rows = Rows(samples, module.preprocess)
    collate = Collator(module.preprocess.pad, module.preprocess.specs, "right")
    return Loader(rows, collate, workers, batch_size=2, sampler=mixture)


def same(one: Any, other: Any) -> None:
    assert one.uids == other.uids
    assert torch.equal(one.input_ids, other.input_ids)
    assert torch.equal(one.labels, other.labels)
    assert not one.skipped
    assert not other.skipped
    for kind, media in one.media.items():
        assert torch.equal(media.values, other.media[kind].values), kind
        assert torch.equal(media.slots, other.media[kind].slots), kind


def test_batches_equal_those_of_the_loose_files_to_the_bit(modules: list[MacawDataModule]) -> None:
    for epoch in range(2):
        batches = [list(loader(module, 0, 1, 0, epoch)) for module in modules]
        assert sum(len(batch.media["video"].values) for batch in batches[0])
        for one, other in zip(*batches, strict=True):
            same(one, other)
    for one, other in zip(*[list(module.val_dataloader()) for module in modules], strict=True):
        same(one, other)


def test_two_ranks_of_two_workers_share_an_epoch_and_go_on_amidst_it(modules: list[MacawDataModule]) -> None:
    """After two batches of two rows on each of two ranks, a new run begins at position 8."""
    loose = [list(loader(modules[0], rank, 2, 0, 1)) for rank in range(2)]
    ranks = [list(loader(modules[1], rank, 2, 2, 1)) for rank in range(2)]
    for one, other in zip(itertools.chain(*loose), itertools.chain(*ranks), strict=True):
        same(one, other)
    seen = Counter(uid for batch in itertools.chain(*ranks) for uid in batch.uids)
    rows = len(modules[1].samples["train"]["all"])
    assert sum(seen.values()) == (rows + 7) // 2 * 2
    assert sorted(seen.values(), reverse=True)[0] <= 2  # once in each source
    rest = [list(loader(modules[1], rank, 2, 2, 1, start=8)) for rank in range(2)]
    for whole, after in zip(ranks, rest, strict=True):
        for one, other in zip(whole[2:], after, strict=True):
            same(one, other)


def test_the_command_packs_every_source_and_prints_what_reads_them(
    world: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    rows = [{"id": f"{number}.jpg", "instruction": "What?", "response": "A picture."} for number in (0, 1, 0, 9)]
    (tmp_path / "rows.json").write_text(json.dumps({"data": rows}))
    words = ["data=base", "+reader@data.train.mine=macaw", "data.train.mine.read.path=rows.json", "workers=1"]
    words += [f"data.train.mine.read.media_root={world}", "data.train.mine.count=2", "out=packed"]
    code, _, err = call(main, tmp_path, *words, "data.max_skip_rate=0.2")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "train/mine: 1 of 4 rows were left out (media_missing 1), expected at most max_skip_rate=0.2" in err
    assert not (tmp_path / "packed/train").exists()
    words.append("data.max_skip_rate=0.25")
    code, out, err = call(main, tmp_path, *words)
    assert code == 0, err
    assert "1 media_missing" in out
    config = yaml.safe_load(out[out.index("train:") :])
    found = config["train"]["mine"]
    assert (found["count"], found["read"].pop("_target_")) == (2, "macaw_lit.data.sources.packed.read")
    assert len(list(packed.read(found["read"]["path"]))) == 3
    before = files(tmp_path / "packed/train/mine")
    assert call(main, tmp_path, *words)[0] == 0
    assert files(tmp_path / "packed/train/mine") == before
    for word, said in (("mode=quick", "header"), ("shard_mb=0", "at least 1"), ("workers=no", "at least 1")):
        code, _, err = call(main, tmp_path, *words, word)
        assert (code, len(err.splitlines())) == (1, 1)
        assert said in err
