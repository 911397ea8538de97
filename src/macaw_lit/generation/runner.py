"""Asks a chat model about many media at once, within a pace and a budget, through faults and restarts."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from macaw_lit.errors import ConfigError, MacawError, in_one_line
from macaw_lit.generation.backend import Backend, CallError
from macaw_lit.generation.budget import Gate, Pace, Price
from macaw_lit.generation.journal import Journal
from macaw_lit.generation.parse import parse
from macaw_lit.generation.templates import Job, Request

GIVEN_UP = 5
"""So many jobs in a row without an answer, and the server is taken to be down."""


class GenerationError(MacawError):
    """The server does not answer, or refuses for good; what came before is in the journal."""


@dataclass(frozen=True)
class Limits:
    """How a server is treated.

    Attributes:
        concurrency: requests under way at once, at most.
        requests_per_minute, tokens_per_minute: the pace of their starts; None sets none.
        attempts: of one request that meets faults, before its job is left for another run.
        re_asks: of a job whose answer is refused, cut off, malformed or has a wrong number of pairs.
        timeout: seconds, of a whole request.
        backoff, longest_wait: seconds; waits are drawn up to backoff·2ⁿ ("full jitter"), and a server that asks to
            wait longer than `longest_wait` ends the run.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    attempts: int = 6
    re_asks: int = 2
    timeout: float = 120.0
    backoff: float = 1.0
    longest_wait: float = 300.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.re_asks < 0 or min(self.timeout, self.backoff, self.longest_wait) <= 0:
            raise ConfigError(f"{self}: expected attempts >= 1, re_asks >= 0, and seconds above 0")


@dataclass
class Outcome:
    """How a run ended: jobs settled in it and before it, jobs left for another, faults by cause, why it stopped."""

    settled: int = 0
    before: int = 0
    left: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    stopped: str | None = None


class Runner:
    """Settles jobs one by one by a fixed number of workers, so that a corpus of any size needs little memory.

    Args:
        price: of tokens, for the budget of `journal`.
        on_settled: called once for each job that is settled or left.
    """

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        limits: Limits,
        price: Price,
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend, self.journal, self.limits = backend, journal, limits
        self.price, self.on_settled = price, on_settled
        self.gate = Gate(limits.concurrency)
        self.requests = Pace(limits.requests_per_minute, sleep=self._sleep)
        self.tokens = Pace(limits.tokens_per_minute, sleep=self._sleep)
        self.outcome = Outcome()
        self.fatal: CallError | None = None
        self.given_up = self.under_way = 0
        self._over = asyncio.Event()

    async def run(self, jobs: Iterable[Job]) -> Outcome:
        """Settle all jobs, or as many as the budget allows: then `stopped` says which limit was reached.

        Requests that are under way when the run stops are waited for and journalled.

        Raises:
            ConfigError: no request could work (`Backend.check`).
            GenerationError: the server refused for good or stopped answering.
            DataError: the journal cannot be written; what is not in it may have been billed, and stays reserved.
        """
        left = self._unsettled(jobs)
        first = next(left, None)
        try:
            if first is not None:
                await self.backend.check()  # nothing is asked of a server where everything is settled
                shared = iter([first]), left
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.limits.concurrency):
                        group.create_task(self._work(*shared))
        except ExceptionGroup as group:
            ours = next((error for error in group.exceptions if isinstance(error, MacawError)), group)
            raise ours from None  # a user's mistake, such as a full disk, is told in its own words
        finally:
            await self.backend.close()
        if self.fatal is not None:
            raise GenerationError(
                f"{self.fatal.cause}: {in_one_line(self.fatal)}; {self.outcome.settled} media were settled, "
                "run the same command again to go on once this is mended"
            )
        return self.outcome

    def _unsettled(self, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            if self.journal.history(job.id).settled(self.limits.re_asks):
                self.outcome.before += 1
                self.on_settled()
            else:
                yield job

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)

    async def _work(self, *queues: Iterator[Job]) -> None:
        for queue in queues:
            for job in queue:
                if self._over.is_set():
                    return
                settled = await self._settle(job)
                if self._over.is_set() and not settled:
                    return
                self.outcome.settled += settled
                self.outcome.left += not settled
                self.on_settled()

    async def _settle(self, job: Job) -> bool:
        """Ask until the job is settled; False where it is left for another run."""
        history, faults = self.journal.history(job.id), 0
        while not history.settled(self.limits.re_asks):
            if self._over.is_set():
                return False
            fault = await self._ask(job)
            if fault is None:
                faults = 0
                continue
            faults += 1
            if faults >= self.limits.attempts or fault.cause == "bad_request":  # it would be refused again
                self._give_up(fault)
                return False
            wait = random.uniform(0, self.limits.backoff * 2 ** (faults - 1))
            await self._sleep(wait if fault.retry_after is None else fault.retry_after)
        self.given_up = 0
        return True

    async def _ask(self, job: Job) -> CallError | None:
        """Send one request when pace, gate and budget allow, and journal what comes of it; None also at the end."""
        longer = sum(answer.fault == "length" for answer in self.journal.history(job.id).answers)
        request = job.request(job.asking.max_tokens * 2**longer)
        tokens_in, tokens_out = request.bound()
        tokens, usd = tokens_in + tokens_out, self.price.usd(tokens_in, tokens_out)
        async with self.gate:
            await self.requests.take()
            await self.tokens.take(float(tokens))
            while (refused := self.journal.budget.refuses(tokens, usd)) and self.under_way:
                await self._sleep(0.02)  # what is under way may need less than it reserved
                if self._over.is_set():
                    return None
            if refused:
                self.outcome.stopped = self.outcome.stopped or refused
                self._over.set()
            if self._over.is_set():
                return None
            self.under_way += 1
            try:
                return await self._send(job, request)
            finally:
                self.under_way -= 1

    async def _send(self, job: Job, request: Request) -> CallError | None:
        """Journal a request, send it, and journal what comes of it."""
        tokens_in, tokens_out = request.bound()
        asked = {"medium": job.record.id, "model": job.asking.model, "template": request.template.digest}
        reserved = tokens_in + tokens_out, self.price.usd(tokens_in, tokens_out)
        attempt = self.journal.sent(job.id, *reserved, asked | {"max_tokens": request.max_tokens})
        await self.journal.commit()
        start = time.monotonic()
        try:
            answer = await asyncio.wait_for(self.backend.complete(request), self.limits.timeout)
        except (CallError, TimeoutError) as error:
            late = CallError("timeout", f"no answer within {self.limits.timeout} s", unbilled=False)
            fault = error if isinstance(error, CallError) else late
            self.journal.fault(job.id, attempt, fault.cause, in_one_line(fault), fault.unbilled)
            self._met(fault)
            await self.journal.commit()
            return fault
        usage = (answer.tokens_in, answer.tokens_out) if answer.counted else (tokens_in, tokens_out)
        self.tokens.give_back(max(0.0, float(reserved[0] - sum(usage))))
        _, why = parse(request.template, answer, self.backend.exact)
        self.journal.answer(job.id, attempt, answer, why, self.price.usd(*usage), time.monotonic() - start)
        await self.journal.commit()
        self.gate.report(rate_limited=False)
        return None

    def _give_up(self, fault: CallError) -> None:
        self.given_up += 1
        if self.given_up >= GIVEN_UP:
            self._end(CallError(fault.cause, f"{GIVEN_UP} media in a row brought no answer, the last: {fault}"))

    def _end(self, fault: CallError) -> None:
        self.fatal = self.fatal or fault
        self._over.set()

    def _met(self, fault: CallError) -> None:
        """What one fault means for the requests to come."""
        self.outcome.faults[fault.cause] += 1
        self.gate.report(rate_limited=fault.cause == "rate_limit")
        if fault.fatal:
            self._end(fault)
        elif fault.retry_after is not None and fault.retry_after > self.limits.longest_wait:
            self._end(
                CallError(fault.cause, f"the server asks to wait {fault.retry_after:.0f} s, longer than longest_wait")
            )
        elif fault.retry_after:
            self.requests.hold(fault.retry_after)
