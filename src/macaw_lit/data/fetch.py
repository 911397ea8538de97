"""One file from the network: resumed where it broke off, verified before it gets its name."""

import hashlib
import http.client
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from macaw_lit.errors import ConfigError, DataError, in_one_line, unwritable

BLOCK = 2**18
Progress = Callable[[str, int, int | None], None]
"""Told what is being done, and how many bytes of how many (None: nobody said) are done."""


@dataclass(frozen=True)
class Remote:
    """A public file.

    Attributes:
        bytes: its size; None where it is not known.
        digest: `sha256:…`, `md5:…` or `git:…`, git's own name of the content; None where none is published. Then the
            SHA-256 of what came is written beside the file, and the file is held to that from then on.
    """

    url: str
    path: Path
    bytes: int | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ConfigError(f"url={self.url}: expected an address that begins with https:// or http://")
        if self.digest is not None and not re.fullmatch(
            r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}|git:[0-9a-f]{40}", self.digest
        ):
            raise ConfigError(f"digest={self.digest}: expected sha256:, md5: or git: and lower-case hexadecimal digits")

    def beside(self, suffix: str) -> Path:
        """The file of the same name with more after it."""
        return self.path.with_name(self.path.name + suffix)

    @property
    def expected(self) -> str | None:
        """The published digest, or the one that was observed when the file first came."""
        note = self.beside(".sha256")
        words = note.read_text().split() if note.is_file() else []  # a full disk may have left it empty
        return self.digest or (f"sha256:{words[0]}" if words else None)


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for: seconds without a byte, tries in a row that bring nothing, first pause."""

    timeout: float = 30.0
    attempts: int = 5
    backoff: float = 1.0


def fetch(remote: Remote, patience: Patience, progress: Progress) -> str:
    """Make sure that the file is there and verified; returns what was done, in words.

    A file that verifies is left alone; one that does not is set aside as `<name>.bad`. What has come so far is
    `<name>.part`, which the next try, or the next run, goes on with.

    Raises:
        DataError: the server has no such file or another, nobody answers, the disk is full, or the digest is wrong.
    """
    try:
        remote.path.parent.mkdir(parents=True, exist_ok=True)
        words = ""
        if remote.path.exists():
            if _is_right(remote, remote.path, progress):
                return _note(remote, remote.path, progress) or "verified, left as it is"
            remote.path.replace(remote.beside(".bad"))
            words = f"another file was there and is now {remote.beside('.bad').name}; "
        part = remote.beside(".part")
        _download(remote, part, patience, progress)
        remote.beside(".part.etag").unlink(missing_ok=True)
        if not _is_right(remote, part, progress):
            part.replace(remote.beside(".bad"))
            facts = " and ".join(filter(None, [f"{remote.bytes} bytes" if remote.bytes else "", remote.expected]))
            remedy = "run again, and if it stays so, the file behind the address has changed"
            raise DataError(
                f"{remote.url}: is not the file with {facts}; set aside as {remote.beside('.bad')}; {remedy}"
            )
        noted = _note(remote, part, progress)
        part.replace(remote.path)
    except OSError as error:
        raise unwritable(remote.path, error) from error
    return words + (noted or "fetched and verified")


def room_for(path: Path, wanted: int) -> None:
    """Make sure that so many bytes are free on the disk of `path`.

    Raises:
        DataError: they are not.
    """
    free = shutil.disk_usage(path).free
    if free < wanted:
        raise DataError(f"{path}: {wanted} bytes are needed and {free} are free; make room or choose another root")


def digest_of(path: Path, kind: str, progress: Progress) -> str:
    """`kind:…` of a file; git's is the SHA-1 of a header with the size, and the content."""
    size = path.stat().st_size
    state = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if kind == "git":
        state.update(b"blob %d\0" % size)
    done = 0
    with path.open("rb") as file:
        while block := file.read(4 * BLOCK):
            state.update(block)
            done += len(block)
            progress(f"checking {path.name}", done, size)
    return f"{kind}:{state.hexdigest()}"


def _is_right(remote: Remote, path: Path, progress: Progress) -> bool:
    if remote.bytes is not None and path.stat().st_size != remote.bytes:
        return False
    expected = remote.expected
    return expected is None or digest_of(path, expected.partition(":")[0], progress) == expected


def _note(remote: Remote, path: Path, progress: Progress) -> str:
    """Write down the digest of a file that no published one vouches for; returns that in words, if it was new."""
    if remote.expected is not None:
        return ""
    found = digest_of(path, "sha256", progress).partition(":")[2]
    remote.beside(".sha256").write_text(f"{found}  {remote.path.name}\n")
    return f"no checksum is published; this one is noted in {remote.beside('.sha256').name} and held to from now on"


def _download(remote: Remote, part: Path, patience: Patience, progress: Progress) -> None:
    """Bring `part` to its full length, however often the connection breaks, as long as every few tries bring more."""
    failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _go_on(remote, part, patience.timeout, progress)
        except HTTPError as error:
            if error.code == 416:  # the part is as long as the file, or longer: `fetch` tells which
                whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                if whole and int(whole[1]) == before:
                    return None
                part.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                remedy = "look for the new address and give it as url, or fetch the file by hand"
                raise DataError(f"{remote.url}: {error.code} {error.reason}, expected the file; {remedy}") from error
            fault: Exception = error
        except (http.client.HTTPException, ConnectionError) as error:
            fault = error
        now = part.stat().st_size if part.exists() else 0
        failed = 1 if now > before else failed + 1
        if failed >= patience.attempts:
            have = f"{now} bytes are kept; check the network and run again to go on"
            why = f"{failed} tries in a row failed, the last: {in_one_line(fault)}"
            raise DataError(f"{remote.url}: {why}; {have}") from fault
        time.sleep(patience.backoff * 2 ** (failed - 1))


def _go_on(remote: Remote, part: Path, timeout: float, progress: Progress) -> None:
    """Ask for what `part` lacks and append it; a server without ranges, or with a new file, starts it anew."""
    start = part.stat().st_size if part.exists() else 0
    tag = remote.beside(".part.etag")
    headers = {"User-Agent": "macaw-lit", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag.is_file():
            headers["If-Range"] = tag.read_text()
    with _ask(Request(remote.url, headers=headers), timeout) as answer:  # noqa: S310  # Remote checks the scheme
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if answer.status == 206 and given and int(given[1]) != start:
            part.unlink()
            raise ConnectionError(f"the server went on at byte {given[1]} and not at {start}")
        start = start if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        _expect(remote, answer.headers.get_content_type(), total)
        room_for(part.parent, (total or 0) - start)
        if strong := re.fullmatch(r'"[^"\r\n]*"', answer.headers.get("ETag", "")):
            tag.write_text(strong[0])
        else:
            tag.unlink(missing_ok=True)
        with part.open("ab" if start else "wb") as file:
            _copy(answer, file, remote.path, start, total, progress)


def _ask(request: Request, timeout: float) -> http.client.HTTPResponse:
    try:
        return urlopen(request, timeout=timeout)  # noqa: S310
    except HTTPError:
        raise
    except OSError as error:  # whatever the network has to say must not look like the disk's
        raise ConnectionError(str(getattr(error, "reason", None) or error)) from error


def _expect(remote: Remote, kind: str, total: int | None) -> None:
    """Refuse, before a byte is taken, what cannot be the file."""
    if kind == "text/html" and remote.path.suffix not in (".html", ".htm"):
        raise DataError(f"{remote.url}: a web page came instead of {remote.path.name}; fetch it by hand in a browser")
    if None not in (total, remote.bytes) and total != remote.bytes:
        remedy = "the file has changed; give its new bytes and digest, or another url"
        raise DataError(f"{remote.url}: {total} bytes are there, expected {remote.bytes}; {remedy}")


def _copy(
    answer: http.client.HTTPResponse, file: BinaryIO, path: Path, start: int, total: int | None, progress: Progress
) -> None:
    done = start
    while block := _read(answer):
        try:
            file.write(block)
            file.flush()
        except OSError as error:
            raise unwritable(path, error) from error
        done += len(block)
        progress(f"fetching {path.name}", done, total)
    if total is not None and done < total:  # http.client does not tell when it is asked for blocks
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(BLOCK)
    except OSError as error:
        raise ConnectionError(str(error)) from error
