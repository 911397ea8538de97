"""Any server that speaks OpenAI's chat completions, through the `openai` client."""

import asyncio
import os
import time
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from typing import Any

from macaw_lit.errors import ConfigError, in_one_line
from macaw_lit.generation.backend import Backend, CallError
from macaw_lit.generation.parse import Completion
from macaw_lit.generation.templates import Request

try:
    import openai
except ImportError as error:
    raise ConfigError("backend=chat needs the openai package: pip install 'macaw-lit[generate]'") from error

RUNGS = ("json_schema", "json_object", "plain")
"""What servers understand of `response_format`; one that refuses a rung is asked with the next from then on."""

TRIES = 3  # of the check before the first paid request


class ChatBackend(Backend):
    """Sends requests; never retries by itself, so that the journal sees every one.

    Args:
        model: must be among the server's models.
        base_url: up to and with `/v1`.
        key_variable: the environment variable that holds the key; None for servers that want none. The key itself is
            neither kept in a config nor ever written.
        limit_field: `max_tokens`, or `max_completion_tokens`, which some models want.
        timeout: seconds, of one read; the runner limits the whole request.

    Raises:
        ConfigError: the variable is not set, or `base_url` is no address.
    """

    exact = True

    def __init__(
        self,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        key_variable: str | None = "OPENAI_API_KEY",
        limit_field: str = "max_tokens",
        timeout: float = 120.0,
    ) -> None:
        key = "none" if key_variable is None else os.environ.get(key_variable, "").strip()
        if not key:
            raise ConfigError(f"{key_variable} is not set: export the API's key in it, or give api.key_variable=null")
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"{key_variable} has characters that no API key has; copy the key anew")
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"api.base_url={base_url}: expected http://… or https://…, up to and with /v1")
        self.model, self.base_url, self.key_variable, self.limit_field = model, base_url, key_variable, limit_field
        self.rung = RUNGS[0]
        self.client = openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=timeout)

    async def check(self) -> None:
        """Ask for the list of models, which costs nothing.

        Raises:
            ConfigError: no such server, a key that it refuses, or a model that it does not have.
        """
        for left in reversed(range(TRIES)):
            try:
                names = [model.id async for model in self.client.models.list()]
                break
            except (openai.OpenAIError, ValueError, AttributeError) as error:
                fault = _fault(error)
                if fault.fatal or not left:
                    raise ConfigError(self._explain(fault)) from error
                await asyncio.sleep(min(fault.retry_after or 1.0, 10.0))
        if self.model not in names:
            near = get_close_matches(self.model, names, 3) or sorted(names)[:3]
            raise ConfigError(f"model={self.model}: {self.base_url} has no such model; it has {', '.join(near)}, …")

    async def complete(self, request: Request) -> Completion:
        rung = self.rung
        try:
            answer = await self.client.chat.completions.create(**request.body(self.limit_field, rung))
            choice = answer.choices[0]
            text, usage = choice.message.content, answer.usage
            return Completion(
                text=text if isinstance(text, str) else "",
                finish_reason=str(choice.finish_reason),
                refusal=bool(getattr(choice.message, "refusal", None)),
                model=str(answer.model),
                tokens_in=usage.prompt_tokens if usage else 0,
                tokens_out=usage.completion_tokens if usage else 0,
                counted=usage is not None,
            )
        except openai.BadRequestError as error:
            if "response_format" in str(error) and rung != RUNGS[-1]:
                if self.rung == rung:  # others may have stepped down meanwhile
                    self.rung = RUNGS[RUNGS.index(rung) + 1]
                raise CallError("response_format", in_one_line(error), retry_after=0.0) from error
            raise _fault(error) from error
        except (openai.OpenAIError, ValueError, AttributeError, TypeError, IndexError) as error:
            raise _fault(error) from error  # the last four: a body that is JSON but no chat completion

    async def close(self) -> None:
        await self.client.close()

    def _explain(self, fault: CallError) -> str:
        remedies = {
            "key": f"{self.key_variable} holds a key that it refuses; get a valid one",
            "not_found": "it has no list of models; give api.base_url up to and with /v1",
            "quota": "the account has no credit left; add some",
        }
        remedy = remedies.get(fault.cause, "check api.base_url and whether the server runs")
        return f"api.base_url={self.base_url}: {in_one_line(fault)}: {remedy}"


def _fault(error: Exception) -> CallError:
    """An error of the client as a fault: what may be tried again, what must not, what may have been billed."""
    message = in_one_line(error)
    if isinstance(error, openai.APITimeoutError):
        return CallError("timeout", message, unbilled=False)
    if isinstance(error, openai.APIStatusError):
        status = error.response.status_code
        if status == 429 and "insufficient_quota" in f"{error.code} {error.body}":
            return CallError("quota", message, fatal=True)
        causes = {401: "key", 403: "key", 404: "not_found", 408: "timeout", 409: "conflict", 429: "rate_limit"}
        cause = causes.get(status, "server" if status >= 500 else "bad_request")
        fatal = cause in ("key", "not_found")
        return CallError(cause, message, fatal=fatal, retry_after=_retry_after(error.response.headers))
    if isinstance(error, openai.APIConnectionError):
        refused = "ConnectError" in type(error.__cause__).__name__
        return CallError("connection", message, unbilled=refused)  # one that broke off may have been worked on
    return CallError("bad_body", message, unbilled=False)


def _retry_after(headers: Any) -> float | None:
    """Seconds by `retry-after-ms` or `Retry-After`, a number or a date; None where there is neither."""
    value = headers.get("retry-after", "")
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(value)) if value else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
