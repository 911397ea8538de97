"""Runs `macaw_lit.train` again and again in forked processes, which spares each the imports, and ends them abruptly.

Reads one JSON object a line: `words`, `cwd`, `world`, `log`, and what ends it: `alarm`, seconds after which the kernel
ends the process that starts training (SIGALRM is not handled, so that no line of Python runs any more); `step`, the
training step in which SIGKILL comes; `validation`, the same of validation; `write`, seconds after the `nth` file
has begun to be written; `signal`, a pair of a step and a signal's number. Answers with the exit codes and the seconds.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import lightning.pytorch.strategies
import matplotlib.pyplot
import torch.distributed  # noqa: F401
from lightning.pytorch.loops import _TrainingEpochLoop

import macaw_lit.build
import macaw_lit.evaluation
from conftest import train_tokenizer  # imports torch, transformers and all else that is slow
from macaw_lit.train import main
from macaw_lit.training.checkpoints import Checkpoints, InPlace
from macaw_lit.training.module import MacawModule

LIMIT = 300  # seconds
FULL_DISK = 100_000  # bytes that a file may have


def nth(owner: type, name: str, count: int, then: Callable[[], object]) -> None:
    """Calls `then` when the method is called for the `count`th time, and the method after it."""
    method, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            then()
        return method(*arguments, **settings)

    setattr(owner, name, counted)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare(request: dict[str, Any]) -> None:
    """Arranges how this process is to end."""
    if "alarm" in request:
        signal.setitimer(signal.ITIMER_REAL, request["alarm"])
    if "step" in request:
        nth(MacawModule, "training_step", request["step"], die)
    if "validation" in request:
        nth(MacawModule, "validation_step", request["validation"], die)
    if "advance" in request:
        nth(_TrainingEpochLoop, "on_advance_end", request["advance"], die)
    if "write" in request:
        delay = request["write"]
        nth(InPlace, "save_checkpoint", request["nth"], lambda: signal.setitimer(signal.ITIMER_REAL, delay))
    if "signal" in request:
        step, number = request["signal"]
        nth(MacawModule, "training_step", step, lambda: os.kill(os.getpid(), number))
    if "full" in request:
        import resource

        nth(
            Checkpoints,
            "_save",
            request["full"],
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK, FULL_DISK)),
        )


def child(request: dict[str, Any], rank: int) -> None:
    os.setsid()
    log = os.open(request["log"] + str(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(request["cwd"])
    if request["world"] > 1:
        shared = {"WORLD_SIZE": str(request["world"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
        shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(request["world"])}
        os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    if rank == request.get("rank", 0):
        prepare(request)
    sys.argv = ["train", *request["words"]]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    running: dict[int, int] = {}
    for rank in range(request["world"]):
        pid = os.fork()
        if not pid:
            child(request, rank)
        running[pid] = rank
    codes: dict[int, int] = {}
    groups = list(running)
    try:
        while running and time.monotonic() - began < LIMIT:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(0.005)
                continue
            codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
            if os.WIFSIGNALED(status):
                break  # the machine is gone, with all its processes
    finally:
        for group in groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                continue
    for pid in list(running):
        codes[running.pop(pid)] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"codes": [codes[rank] for rank in sorted(codes)], "seconds": time.monotonic() - began}


if __name__ == "__main__":
    _ = train_tokenizer, macaw_lit.build, macaw_lit.evaluation, matplotlib.pyplot, lightning.pytorch.strategies
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
