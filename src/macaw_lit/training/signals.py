"""SIGTERM and SIGUSR1 end a run with exit code 0: noted until training has saved, obeyed at once when it is over."""

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

ONE_WISH = 1.0  # seconds; `timeout`, for one, sends its signal to the process and to its group


class Stopped(BaseException):  # no Exception: whoever handles errors on the way is not to take it for one
    """A signal ended a run after all was saved that was to be kept.

    Args:
        answer: what whoever handled the signal before does about it, such as submitit, which requeues its job.
    """

    def __init__(self, message: str, answer: Callable[[], object] | None = None) -> None:
        super().__init__(message)
        self.answer = answer


class StopSignals:
    """Notes SIGTERM and SIGUSR1 in `asked`, and what SIGUSR2 says if someone, such as submitit, has an answer to it.

    From `heed` on signals are only noted, since processes that wait for each other must stop at the same place; from
    `obey` on they raise `Stopped` where they come. The same signal a second time ends the process at once, but within
    `ONE_WISH` of the first it is the same wish. Outside the main thread, where Python has no signals, nothing happens.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._at = 0.0
        self._raising = False

    def heed(self) -> bool:
        """Begin to note signals; False if they are being noted already."""
        self._raising = False
        if self._before or threading.current_thread() is not threading.main_thread():
            return False
        self.asked = None
        numbers = [signal.SIGTERM, signal.SIGUSR1]
        if callable(signal.getsignal(signal.SIGUSR2)):
            numbers.append(signal.SIGUSR2)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return True

    def obey(self) -> None:
        """Raise `Stopped` for a signal that has come, or when one comes."""
        self._raising = True
        if self.asked is not None:
            raise Stopped(f"stopped by {self.asked.name}", self.answer())

    def leave(self) -> None:
        """Let everything be as it was before `heed`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before, self.asked = {}, None

    def answer(self) -> Callable[[], object] | None:
        """What the signal that has come was answered with before `heed`, if it was."""
        handler = self._before.get(self.asked) if self.asked is not None else None
        return partial(handler, self.asked, None) if callable(handler) else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked == number and now - self._at > ONE_WISH:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.asked != number:
            self.asked, self._at = signal.Signals(number), now
        if self._raising:
            raise Stopped(f"stopped by {self.asked.name}", self.answer())


stop_signals = StopSignals()
"""The process has but one answer to a signal, and so this module has one object."""
