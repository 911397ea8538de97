"""Commands that run side by side, with a time limit, and leave no process behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu", "TERM": "dumb"}


def run_together(commands: Sequence[Sequence[str]], folder: Path, limit: float, **environment: str) -> list[str]:
    """What the commands of this Python printed, once all have ended well.

    When one fails or the limit is over, all are asked to end, so that torchrun ends its workers, and then made to.
    """
    logs = [folder / f"{number}.log" for number in range(len(commands))]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for words, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                environ = {**os.environ, **ENVIRONMENT, **environment}
                command = [sys.executable, *words]
                started.append(
                    subprocess.Popen(command, env=environ, stdout=file, stderr=file, cwd=folder, start_new_session=True)
                )
        deadline = time.monotonic() + limit
        while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
            assert time.monotonic() < deadline, "a hang: " + "".join(log.read_text()[-2000:] for log in logs)
            time.sleep(0.2)
        codes = [process.poll() for process in started]
        assert codes == [0] * len(codes), "".join(log.read_text()[-4000:] for log in logs)
        return [log.read_text() for log in logs]
    finally:
        for sign, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, sign)
            ends = time.monotonic() + patience
            while any(process.poll() is None for process in started) and time.monotonic() < ends:
                time.sleep(0.2)


@pytest.fixture(scope="session")
def together() -> Callable[..., list[str]]:
    return run_together


def torchrun(processes: int, *words: str) -> list[str]:
    """The command of one agent that starts its processes itself and finds a free port."""
    agent = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
    return [*agent, "--rdzv-endpoint", "localhost:0", *words]


@pytest.fixture(scope="session")
def one_agent() -> Callable[..., list[str]]:
    return torchrun


@pytest.fixture
def unused_port(socket_enabled: None) -> int:
    """A port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
