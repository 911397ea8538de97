"""Files from a real server on this machine that breaks off, ignores ranges, changes its mind and lies."""

import errno
import hashlib
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from macaw_lit.data import fetch as module
from macaw_lit.data.fetch import Patience, Remote, fetch
from macaw_lit.errors import ConfigError, DataError

CONTENT = bytes(range(256)) * 3000  # three blocks
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(timeout=5.0, attempts=3, backoff=0.01)


@pytest.fixture
def remote(site: Any, tmp_path: Path) -> Remote:
    site.files["/a.bin"] = CONTENT
    return Remote(f"{site.url}/a.bin", tmp_path / "data" / "a.bin", len(CONTENT), SHA)


def get(remote: Remote, patience: Patience = QUICK) -> str:
    return fetch(remote, patience, lambda *_: None)


def names(remote: Remote) -> list[str]:
    return sorted(path.name for path in remote.path.parent.iterdir())


def test_a_file_comes_verified_and_a_second_run_asks_nobody(site, remote):
    told = []
    assert fetch(remote, QUICK, lambda *step: told.append(step)) == "fetched and verified"
    assert remote.path.read_bytes() == CONTENT
    assert names(remote) == ["a.bin"]
    assert ("fetching a.bin", len(CONTENT), len(CONTENT)) in told
    assert ("checking a.bin.part", len(CONTENT), len(CONTENT)) in told
    stamp = remote.path.stat().st_mtime_ns
    assert get(remote) == "verified, left as it is"
    assert (len(site.asked), remote.path.stat().st_mtime_ns) == (1, stamp)


@pytest.mark.parametrize("lengths", [True, False])
def test_cut_connections_are_gone_on_with(site, remote, lengths):
    site.lengths = lengths
    site.cuts = [300_000, 1, 200_000]
    if lengths:
        get(remote)
        assert site.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=500001-"]
        assert remote.path.read_bytes() == CONTENT
    else:  # nobody can tell a cut from the end, so that size and digest decide
        with pytest.raises(DataError, match=f"is not the file with {len(CONTENT)} bytes and sha256:"):
            get(remote)
        assert not remote.path.exists()


def test_what_an_earlier_run_left_is_gone_on_with(site, remote):
    site.cuts = [300_000]
    with pytest.raises(DataError, match="1 tries in a row failed.*300000 of 768000 bytes.*300000 bytes are kept"):
        get(remote, Patience(5.0, 1, 0.0))
    assert names(remote) == ["a.bin.part", "a.bin.part.etag"]
    get(remote)
    assert site.asked == [None, "bytes=300000-"]
    assert names(remote) == ["a.bin"]


def test_a_server_without_ranges_starts_anew(site, remote):
    site.ranges, site.cuts = False, [300_000]
    get(remote)
    assert site.asked == [None, "bytes=300000-"]
    assert remote.path.read_bytes() == CONTENT


def test_a_file_that_changed_in_between_starts_anew(site, remote):
    site.cuts = [300_000]
    with pytest.raises(DataError):
        get(remote, Patience(5.0, 1, 0.0))
    new = CONTENT[::-1]
    site.files["/a.bin"], site.etag = new, '"2"'
    changed = Remote(remote.url, remote.path, len(new), "sha256:" + hashlib.sha256(new).hexdigest())
    assert get(changed) == "fetched and verified"


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_as_long_as_the_file_is_judged_and_a_longer_one_dropped(site, remote, extra):
    remote.path.parent.mkdir()
    remote.beside(".part").write_bytes(CONTENT + extra)
    assert get(remote) == "fetched and verified"
    assert len(site.asked) == 1 + bool(extra)


def test_servers_that_are_busy_are_asked_again(site, remote):
    site.refusals = [503, 429]
    assert get(remote) == "fetched and verified"
    site.refusals = [500] * 3
    remote.path.unlink()
    with pytest.raises(DataError, match="3 tries in a row failed, the last: HTTP Error 500.*0 bytes are kept"):
        get(remote)


def test_a_wrong_digest_sets_the_file_aside(site, remote):
    wrong = Remote(remote.url, remote.path, None, SHA[:-1] + ("0" if SHA[-1] != "0" else "1"))
    with pytest.raises(DataError, match=r"is not the file with sha256:.*set aside as .*a\.bin\.bad"):
        get(wrong)
    assert names(remote) == ["a.bin.bad"]
    assert get(remote) == "fetched and verified"


def test_another_file_of_the_same_name_is_kept_beside(site, remote):
    remote.path.parent.mkdir()
    remote.path.write_bytes(b"mine")
    assert get(remote) == "another file was there and is now a.bin.bad; fetched and verified"
    assert remote.beside(".bad").read_bytes() == b"mine"


def test_without_a_published_digest_the_observed_one_is_held_to(site, remote):
    bare = Remote(remote.url, remote.path)
    assert get(bare).startswith("no checksum is published; this one is noted in a.bin.sha256")
    line = remote.beside(".sha256").read_text()
    assert line == f"{hashlib.sha256(CONTENT).hexdigest()}  a.bin\n"
    done = subprocess.run(["sha256sum", "-c", "a.bin.sha256"], cwd=remote.path.parent, capture_output=True)
    assert done.returncode == 0  # the common tool reads the note
    assert get(bare) == "verified, left as it is"
    remote.path.write_bytes(b"rotten")
    assert get(bare).endswith("fetched and verified")
    assert remote.path.read_bytes() == CONTENT


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the reference")
def test_git_s_name_of_a_content_is_git_s(site, tmp_path):
    done = subprocess.run(["git", "hash-object", "--stdin"], input=CONTENT, capture_output=True, check=True)
    site.files["/a.bin"] = CONTENT
    remote = Remote(f"{site.url}/a.bin", tmp_path / "a.bin", None, f"git:{done.stdout.decode().strip()}")
    assert get(remote) == "fetched and verified"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {}}, "404 Not Found, expected the file; look for the new address"),
        ({"refusals": [403]}, "403 Forbidden, expected the file"),
        ({"kind": "text/html"}, "a web page came instead of a.bin; fetch it by hand"),
        ({"files": {"/a.bin": b"short"}}, "5 bytes are there, expected 768000; the file has changed"),
    ],
)
def test_what_cannot_be_the_file_ends_at_once(site, remote, change, message):
    for name, value in change.items():
        setattr(site, name, value)
    with pytest.raises(DataError, match=message):
        get(remote)
    assert len(site.asked) == 1
    assert names(remote) == []


def test_nobody_there_is_one_line(site, tmp_path):
    remote = Remote("http://127.0.0.1:1/a.bin", tmp_path / "a.bin")
    with pytest.raises(
        DataError, match="3 tries in a row failed, the last: .*refused; 0 bytes are kept; check the network"
    ):
        get(remote)


def test_a_full_disk_is_one_line_and_keeps_what_came(site, remote, monkeypatch):
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() >= 300_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    whole = Path.open
    part = remote.beside(".part")
    full = lambda path, *mode, **how: Full(path, *mode) if path == part else whole(path, *mode, **how)  # noqa: E731
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match=r"a\.bin: cannot be written \(No space left on device\); make room"):
        get(remote)
    monkeypatch.undo()
    assert len(site.asked) == 1  # it is not the server's fault
    assert part.stat().st_size >= 300_000
    get(remote)
    assert remote.path.read_bytes() == CONTENT


def test_too_little_room_is_known_before_a_byte_comes(site, remote, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match="768000 bytes are needed and 1000 are free"):
        get(remote)
    assert not remote.beside(".part").exists()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (("file:///etc/passwd", None), "begins with https:// or http://"),
        (("http://a.org/x", "crc:12"), "expected sha256:, md5: or git:"),
    ],
)
def test_facts_that_cannot_work_are_refused(tmp_path, facts, message):
    with pytest.raises(ConfigError, match=message):
        Remote(facts[0], tmp_path / "x", None, facts[1])
