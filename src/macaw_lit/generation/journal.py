"""The journal: every request before it is sent and whatever came of it, on disk before anything else happens."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from macaw_lit.errors import ConfigError, DataError, unwritable
from macaw_lit.generation.budget import Budget
from macaw_lit.generation.parse import Completion


@dataclass(frozen=True)
class Answer:
    """One answer of a job, as journalled; `fault` says why it should be asked again, None if it need not."""

    completion: Completion
    fault: str | None
    time: str


@dataclass
class History:
    """All that happened to one job: requests sent, answers in order, faults by cause."""

    sent: int = 0
    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    open: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Attempt → tokens and USD reserved for a request of which nothing is known yet."""

    def settled(self, re_asks: int) -> bool:
        """Nothing more is to be asked: a good answer is there, or all that may be asked again was."""
        return any(answer.fault is None for answer in self.answers) or len(self.answers) > re_asks


class Journal:
    """An append-only file of JSON lines; one writer at a time.

    A line that was written survives the end of the process; after `commit` it survives the end of the machine (fsync).
    A last line that was torn by a crash is cut off when the journal is opened. Requests of which nothing came back keep
    their reservation: they may have been billed. A line that the disk does not take whole is cut off again.

    Attributes:
        jobs: job → its history.
        budget: counts what the journal says was spent, before and now.

    Raises:
        ConfigError: another process writes to it.
        DataError: a line in the middle is no line of a journal; or, as in every method that writes, the disk is full.
    """

    def __init__(self, path: Path, budget: Budget | None = None) -> None:
        self.path, self.budget = path, budget or Budget()
        self.budget.clear()
        self.jobs: dict[str, History] = {}
        self._written = self._committed = 0
        self._committing = asyncio.Lock()
        self._lock = FileLock(f"{path}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"{path} is being written by another process; wait for it or stop it") from error
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            self._file = path.open("ab", buffering=0)  # what a full disk refuses must not wait in a buffer
            self._replay()
            descriptor = os.open(path.parent, os.O_RDONLY)
            os.fsync(descriptor)  # the file's name, too, must survive
            os.close(descriptor)
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise unwritable(path, error) from error
            raise

    async def commit(self) -> None:
        """Wait until all that is written is on disk; those who wait at the same time share one fsync."""
        wanted = self._written
        async with self._committing:
            if self._committed < wanted:
                written = self._written
                try:
                    await asyncio.to_thread(os.fsync, self._file.fileno())
                except OSError as error:
                    raise unwritable(self.path, error) from error
                self._committed = written

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as problem:
            raise unwritable(self.path, problem) from problem
        finally:
            self._file.close()
            self._lock.release()

    def history(self, job: str) -> History:
        """What happened to a job so far."""
        return self.jobs.setdefault(job, History())

    def sent(self, job: str, tokens: int, usd: float, request: Mapping[str, Any]) -> int:
        """Reserve and note a request that is about to be sent; returns its number."""
        attempt = self.history(job).sent + 1
        self._write({"event": "sent", "job": job, "attempt": attempt, "tokens": tokens, "usd": usd, **request})
        return attempt

    def answer(
        self, job: str, attempt: int, completion: Completion, fault: str | None, usd: float, seconds: float
    ) -> None:
        """Note what came back and what it cost; unknown token counts keep the reservation's."""
        came = {"fault": fault, "usd": usd, "seconds": round(seconds, 3), **asdict(completion)}
        self._write({"event": "answer", "job": job, "attempt": attempt, **came})

    def fault(self, job: str, attempt: int, cause: str, detail: str, unbilled: bool) -> None:
        """Note that nothing came back; `unbilled` gives the reservation back."""
        came = {"cause": cause, "detail": detail, "unbilled": unbilled}
        self._write({"event": "fault", "job": job, "attempt": attempt, **came})

    def _write(self, line: dict[str, Any]) -> None:
        line["time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        data = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(data) < len(data):  # the disk took a part: asked again, it tells why
                self._file.write(data)
                raise OSError("the disk took a part of a line")
        except OSError as error:
            os.truncate(self._file.fileno(), end)
            raise unwritable(self.path, error) from error
        self._written += 1
        self._apply(line)

    def _replay(self) -> None:
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._apply(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    remedy = "delete that line, or the file to start anew"
                    raise DataError(f"{self.path}:{number}: {line[:60]!r} is no line of a journal; {remedy}") from error
                end += len(line)
        self._file.truncate(end)

    def _apply(self, line: Mapping[str, Any]) -> None:
        history, attempt, event = self.history(line["job"]), line["attempt"], line["event"]
        if event == "sent":
            history.sent = max(history.sent, attempt)
            history.open[attempt] = line["tokens"], line["usd"]
            self.budget.add(1, line["tokens"], line["usd"])
            return
        reserved = history.open.pop(attempt, (0, 0.0))
        if event == "fault":
            history.faults.append(line["cause"])
            if line["unbilled"]:
                self.budget.add(0, -reserved[0], -reserved[1])
        elif event == "answer":
            fields = {name: line[name] for name in Completion.__dataclass_fields__}
            completion = Completion(**fields)
            history.answers.append(Answer(completion, line["fault"], line["time"]))
            if completion.counted:
                used = completion.tokens_in + completion.tokens_out
                self.budget.add(0, used - reserved[0], line["usd"] - reserved[1])
        else:
            raise KeyError(event)
