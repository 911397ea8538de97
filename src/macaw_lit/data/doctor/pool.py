"""Work in child processes that may hang or die: the item at fault is named, the others are done."""

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 16  # items that a process is given at once, so that it does not wait for the parent


@dataclass(frozen=True)
class Failure:
    """An item that gave no result: its process took too long, or died."""

    cause: Literal["timeout", "crashed"]
    detail: str


@dataclass
class _Worker(Generic[T]):
    """A child process, the items it was given and has not answered, and when the first of them is overdue."""

    process: Any
    pipe: Connection
    given: deque[T] = field(default_factory=deque)
    deadline: float = 0.0


def run(
    task: Callable[[T], R], items: Iterable[T], workers: int = 1, seconds: float = 30.0
) -> Iterator[tuple[T, R | Failure]]:
    """Yields `(item, result)` as results come, every item once.

    Args:
        task: a picklable function of one item that does not raise; so are items and results.
        workers: processes at once.
        seconds: the most that one item may take; its process is killed then.
    """
    context = _context(task)
    left: deque[T] = deque(items)
    pool = [_start(context, task) for _ in range(min(workers, -(-len(left) // CHUNK)))]
    try:
        for worker in pool:
            _give(worker, left, seconds)
        while busy := [worker for worker in pool if worker.given]:
            pause = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            ready = wait([worker.pipe for worker in busy], pause)
            for worker in busy:
                failure = None
                if worker.pipe in ready:
                    try:
                        result = worker.pipe.recv()
                        yield worker.given.popleft(), result
                        worker.deadline = time.monotonic() + seconds
                    except (EOFError, ConnectionResetError):
                        worker.process.join(5)
                        failure = Failure("crashed", f"its process died with exit code {worker.process.exitcode}")
                elif time.monotonic() > worker.deadline and not worker.pipe.poll():
                    failure = Failure("timeout", f"no answer within {seconds:g} s")
                if failure:
                    yield worker.given.popleft(), failure
                    left.extendleft(reversed(worker.given))
                    _stop(worker)
                    pool[pool.index(worker)] = worker = _start(context, task)
                if not worker.given:
                    _give(worker, left, seconds)
    finally:
        for worker in pool:
            _stop(worker)


def _context(task: Callable[..., Any]) -> Any:
    """A way to start processes that is safe beside threads and, where there is one, imports what `task` needs once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(task, "func", task).__module__])
    return context


def _start(context: Any, task: Callable[[T], R]) -> _Worker[T]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(task, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(task: Callable[[T], R], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    try:
        while True:
            for item in pipe.recv():
                pipe.send(task(item))
    except (EOFError, BrokenPipeError):  # the parent is done
        return


def _give(worker: _Worker[T], left: deque[T], seconds: float) -> None:
    chunk = [left.popleft() for _ in range(min(CHUNK, len(left)))]
    if chunk:
        worker.given.extend(chunk)
        worker.deadline = time.monotonic() + seconds
        worker.pipe.send(chunk)


def _stop(worker: _Worker[T]) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()
