"""A server that speaks OpenAI's chat completions on this machine and misbehaves as told; records to ask it about."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from macaw_lit.generation.records import Record
from macaw_lit.generation.templates import Asking, Job, Template

KEY = "sk-test-0123456789abcdef"


def pairs_text(about: str, count: int = 2) -> str:
    """An answer as a good model gives it; equal questions get equal answers."""
    pairs = [
        {"instruction": f"What is number {n} of {about}?", "response": f"Thing {n} of {about} it is.", "type": "object"}
        for n in range(count)
    ]
    return json.dumps({"pairs": pairs})


def completion(text: str, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny-0001",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }


@dataclass
class Call:
    """A request as the server saw it."""

    about: str
    body: dict[str, Any]
    time: float


Script = Callable[[Call, int], Any]
"""(call, number of this call about this medium from 0) → what to do.

`{"pairs": n}` answers with so many good pairs, `{"text": …}` with that text; with `"cut": True` the body breaks
off in its middle; `{"drop": True}` closes the connection; a body, bytes or (status, headers, body) go out as they are.
"""


@dataclass
class FaultServer:
    """What the server saw, and what it does: `script` decides about each call; without one every answer is good."""

    url: str = ""
    script: Script | None = None
    delay: float = 0.0
    models: Any = None
    calls: list[Call] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    inside: int = 0
    most_inside: int = 0
    lock: Any = field(default_factory=threading.Lock)
    key: str = KEY

    def about(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.about == name]


def handler(server: FaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            server.keys.add(self.headers.get("Authorization", ""))
            default = {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "us"}]}
            self.reply(default if server.models is None else server.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            about = json.loads(body["messages"][-1]["content"])["captions"][0]
            with server.lock:
                call = Call(about, body, time.monotonic())
                number = len(server.about(about))
                server.calls.append(call)
                server.inside += 1
                server.most_inside = max(server.most_inside, server.inside)
            try:
                time.sleep(server.delay)
                answer = {"pairs": 2} if server.script is None else server.script(call, number)
                if isinstance(answer, dict) and "pairs" in answer:
                    answer = {"text": pairs_text(about, answer["pairs"])}
            finally:
                with server.lock:
                    server.inside -= 1
            self.reply(answer)

        def reply(self, answer: Any) -> None:
            status, headers = 200, {}
            if isinstance(answer, tuple):
                status, headers, answer = answer
            if answer == {"drop": True}:
                self.close_connection = True
                return
            cut = isinstance(answer, dict) and answer.pop("cut", False)
            if isinstance(answer, dict) and "text" in answer:
                answer = completion(**answer)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                self.close_connection = self.close_connection or cut
            except OSError:
                self.close_connection = True  # the client is gone, as some tests want

    return Handler


@pytest.fixture
def server(socket_enabled: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    import pytest_socket

    pytest_socket.socket_allow_hosts(["127.0.0.1"])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    state = FaultServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    pytest_socket._remove_restrictions()


@pytest.fixture
def asking() -> Asking:
    return Asking(Template("test", "Tell of the $medium in $pairs pairs.", pairs=2), "tiny", max_tokens=100)


@pytest.fixture
def jobs(asking: Asking) -> list[Job]:
    return [asking.job(Record(f"{n}.jpg", "image", "coco", (f"medium {n}",))) for n in range(12)]
