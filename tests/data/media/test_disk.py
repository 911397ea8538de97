"""The cache on disk: real processes that write at once, kills in the midst of it, damage, a full disk, the limit."""

import errno
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from macaw_lit.data.media import disk
from macaw_lit.data.media.disk import BUCKETS, DiskCache
from macaw_lit.errors import ConfigError

MIB = 2**20


def key(number: int, bucket: str = "ab") -> str:
    return f"{bucket}{number:062x}"


def tensors(seed: int, size: int = 1000) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "levels": torch.randint(256, (size,), generator=draw, dtype=torch.uint8),
        "palette": torch.randn(7, generator=draw),
    }


def same(found: dict[str, torch.Tensor] | None, wanted: dict[str, torch.Tensor]) -> bool:
    return found is not None and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", BUCKETS * MIB)


def files(cache: DiskCache) -> list[Path]:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


def test_what_was_put_comes_back_also_to_others(cache):
    assert cache.get(key(1)) is None
    cache.put(key(1), tensors(1))
    cache.put(key(2), tensors(2))
    for reader in (cache, DiskCache(cache.folder, MIB)):
        assert same(reader.get(key(1)), tensors(1))
        assert same(reader.get(key(2)), tensors(2))
        assert reader.get(key(3)) is None


def test_no_altered_byte_and_no_cut_goes_unseen(cache):
    cache.put(key(1), tensors(1, 50))
    (path,) = files(cache)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert cache.get(key(1)) is None, place
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert cache.get(key(1)) is None, length
    cache.put(key(1), tensors(1, 50))
    assert path.read_bytes() == whole


def test_an_entry_under_another_name_is_none(cache):
    cache.put(key(1), tensors(1))
    files(cache)[0].rename(cache.folder / "ab" / key(2))
    assert cache.get(key(2)) is None


STORM = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from macaw_lit.data.media.disk import DiskCache

folder, mode = Path(sys.argv[1]), sys.argv[2]
cache = DiskCache(folder, 2**32)
names = [f"ab{number:062x}" for number in range(12)]
wanted = [torch.randn(60_000, generator=torch.Generator().manual_seed(number)) for number in range(12)]

def write(seed, rounds):
    order = random.Random(seed)
    for _ in range(rounds):
        number = order.randrange(12)
        found = cache.get(names[number])
        assert found is None or torch.equal(found["values"], wanted[number]), "torn"
        cache.put(names[number], {"values": wanted[number]})

def start(seed, rounds):
    child = os.fork()
    if not child:
        try:
            write(seed, rounds)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child

if mode == "together":
    assert [os.waitpid(child, 0)[1] for child in [start(seed, 80) for seed in range(4)]] == [0] * 4
    assert all(torch.equal(cache.get(name)["values"], values) for name, values in zip(names, wanted))
    assert not list(folder.rglob("*.tmp"))
else:
    moments, half_written = random.Random(0), 0
    for attempt in range(30):
        child = start(attempt, 10**9)
        time.sleep(moments.uniform(0.005, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        half_written += len(list(folder.rglob("*.tmp")))
        for name, values in zip(names, wanted):
            found = cache.get(name)
            assert (found is not None) == (folder / "ab" / name).exists(), "a name without its whole content"
            assert found is None or torch.equal(found["values"], values)
        for path in folder.rglob("ab0*"):
            path.unlink()  # so that the next one writes them anew
    assert half_written, "no kill hit a half-written file: nothing was tested"
"""


@pytest.mark.parametrize("mode", ["together", "killed"])
def test_processes_that_write_at_once_and_die_leave_whole_entries_or_none(tmp_path, mode):
    """In a process of its own that forks, because each start of one takes seconds."""
    command = [sys.executable, "-c", STORM, str(tmp_path), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_half_written_files_of_the_dead_are_removed_after_an_hour(cache):
    cache.put(key(1), tensors(1))
    fresh, old = (cache.folder / "ab" / f"{key(2)}.{name}.tmp" for name in ("fresh", "old"))
    for path in (fresh, old):
        path.write_bytes(b"half")
    hour_ago = time.time() - 3700
    os.utime(old, (hour_ago, hour_ago))
    cache.put(key(3), tensors(3))
    assert fresh.exists()
    assert not old.exists()


def test_the_limit_holds_and_what_is_in_use_stays(tmp_path):
    cache = DiskCache(tmp_path, 2500 * BUCKETS)  # two entries in each bucket
    for number in range(5):
        cache.put(key(number), tensors(number))
        cache.put(key(number, "cd"), tensors(number))
    held = {(path.parent.name, path.name) for path in files(cache)}
    assert held == {(bucket, key(number, bucket)) for bucket in ("ab", "cd") for number in (0, 1)}
    assert sum(path.stat().st_size for path in (tmp_path / "ab").iterdir()) <= 2500


def test_what_this_run_has_not_used_makes_room_the_longest_unused_first(tmp_path):
    before = DiskCache(tmp_path, 2500 * BUCKETS)
    for number in range(2):
        before.put(key(number), tensors(number))
        past = time.time() - 100 + number
        os.utime(tmp_path / "ab" / key(number), (past, past))
    later = DiskCache(tmp_path, 2500 * BUCKETS)
    assert later.get(key(0)) is not None  # now it is in use
    later.put(key(2), tensors(2))
    assert {path.name for path in files(later)} == {key(0), key(2)}
    later.put(key(3), tensors(3))
    assert {path.name for path in files(later)} == {key(0), key(2)}


def test_what_is_larger_than_a_share_costs_nothing_its_place(tmp_path):
    before = DiskCache(tmp_path, 2500 * BUCKETS)
    before.put(key(1), tensors(1))
    os.utime(tmp_path / "ab" / key(1), (1, 1))
    later = DiskCache(tmp_path, 2500 * BUCKETS)
    later.put(key(2), tensors(2, 9000))
    assert [path.name for path in files(later)] == [key(1)]


def test_writing_an_entry_again_needs_no_further_room(tmp_path):
    cache = DiskCache(tmp_path, 1300 * BUCKETS)
    cache.put(key(1), tensors(1))
    (path,) = files(cache)
    path.write_bytes(b"damaged")
    cache.put(key(1), tensors(1))
    assert same(cache.get(key(1)), tensors(1))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_said_once_and_reading_goes_on(cache, monkeypatch, code):
    cache.put(key(1), tensors(1))

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk.os, "fsync", full)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(2, 5):
            cache.put(key(number), tensors(number))
    assert [str(warning.message) for warning in said] == [
        f"cache folder {cache.folder} ([Errno {code}] {os.strerror(code)}): training goes on, and decodes what is not "
        "cached yet"
    ]
    assert [path.name for path in files(cache)] == [key(1)], "no half-written file stays on a full disk"
    assert same(cache.get(key(1)), tensors(1))


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(ConfigError, match=r"file.*expected a folder that can be made"):
        DiskCache(file, MIB)
    with pytest.raises(ConfigError, match="a cache of 0 bytes"):
        DiskCache(tmp_path, 0)
