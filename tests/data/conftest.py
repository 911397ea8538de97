"""Small specs for the tests of the data side, which need no model; a site to download from, misbehaving as told."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

from macaw_lit.types import MediaSpec


def picture_values(picture: np.ndarray) -> torch.Tensor:
    """The mean colour, spread over [3,4,4]: it identifies the picture."""
    return torch.from_numpy(picture.astype(np.float32).mean((0, 1)) / 255)[:, None, None].expand(3, 4, 4).clone()


def sound_values(sound: np.ndarray) -> torch.Tensor:
    """The loudness, spread over [2,5]."""
    return torch.full((2, 5), float(np.abs(sound).max()))


@pytest.fixture
def specs() -> dict[str, MediaSpec]:
    return {
        "image": MediaSpec("image", picture_values, 3, (3, 4, 4)),
        "video": MediaSpec("video", picture_values, 4, (2, 3, 4, 4), frames=2),
        "audio": MediaSpec("audio", sound_values, 2, (2, 5)),
    }


@dataclass
class Site:
    """What the server has and how it behaves; `asked` are the Range headers of the requests, in order.

    Attributes:
        cuts: after how many bytes of body each of the next answers breaks off.
        refusals: status of each of the next answers.
        etag: of the content; None sends none.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    lengths: bool = True
    etag: str | None = '"1"'
    kind: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            given = self.headers.get("Range")
            site.asked.append(given)
            content = site.files.get(self.path)
            if site.refusals or content is None:
                return self.send_error(site.refusals.pop(0) if site.refusals else 404)
            start = int(given.removeprefix("bytes=").removesuffix("-")) if given and site.ranges else 0
            if self.headers.get("If-Range", site.etag) != site.etag:
                start = 0
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", site.kind)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.lengths:
                self.send_header("Content-Length", str(len(content) - start))
            if site.etag:
                self.send_header("ETag", site.etag)
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: site.cuts.pop(0)] if site.cuts else body)
            return None

    return Handler


@pytest.fixture
def site(socket_enabled: None) -> Iterator[Site]:
    import pytest_socket

    pytest_socket.socket_allow_hosts(["127.0.0.1"])
    state = Site()
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield state
    http.shutdown()
    http.server_close()
    pytest_socket._remove_restrictions()
