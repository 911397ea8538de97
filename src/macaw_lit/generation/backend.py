"""What answers requests: the interface of a chat model, and what can go wrong with one request."""

from abc import ABC, abstractmethod

from macaw_lit.generation.parse import Completion
from macaw_lit.generation.templates import Request


class CallError(Exception):
    """A request that brought no answer.

    Attributes:
        cause: a snake_case word that faults are counted by.
        fatal: every other request would end the same way, so that the run stops.
        unbilled: the server said that it did nothing.
        retry_after: seconds that it asks to wait; None leaves it to us.
    """

    def __init__(
        self, cause: str, message: str, *, fatal: bool = False, unbilled: bool = True, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.cause, self.fatal, self.unbilled, self.retry_after = cause, fatal, unbilled, retry_after


class Backend(ABC):
    """A chat model.

    Attributes:
        exact: it can be held to the number of pairs that it is asked for.
    """

    exact: bool

    async def check(self) -> None:  # noqa: B027  # most have nothing to check
        """Make sure, before the first paid request, that requests can work.

        Raises:
            ConfigError: none can.
        """

    @abstractmethod
    async def complete(self, request: Request) -> Completion:
        """Answer one request.

        Raises:
            CallError: there is no answer.
        """

    async def close(self) -> None:  # noqa: B027  # and nothing to close
        """Let go of connections."""
