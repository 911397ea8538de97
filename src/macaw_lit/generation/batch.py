"""Requests out and answers in as files of OpenAI's Batch format, which local servers take too."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.files import json_rows
from macaw_lit.errors import ConfigError
from macaw_lit.generation.budget import Price
from macaw_lit.generation.journal import Journal
from macaw_lit.generation.parse import Completion, parse
from macaw_lit.generation.templates import Job
from macaw_lit.generation.writers import write_text


def export_batch(
    journal: Journal, jobs: Iterable[Job], path: Path, price: Price, re_asks: int, limit_field: str = "max_tokens"
) -> int:
    """Write a request for every job that is not settled; returns how many.

    Raises:
        ConfigError: the file is there already, or all of them could break a limit of the journal's budget.
    """
    if path.exists():
        raise ConfigError(f"{path} exists and may have been sent; move it away or name another file")
    lines, tokens, usd = [], 0, 0.0
    for job in jobs:
        if journal.history(job.id).settled(re_asks):
            continue
        request = job.request()
        tokens_in, tokens_out = request.bound()
        tokens, usd = tokens + tokens_in + tokens_out, usd + price.usd(tokens_in, tokens_out)
        body = request.body(limit_field)
        line = {"custom_id": job.id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line, ensure_ascii=False))
        refused = journal.budget.refuses(tokens, usd, len(lines))
        if refused:
            raise ConfigError(f"after {len(lines)} requests: {refused}; raise the limit or choose fewer media")
    write_text(path, "".join(f"{line}\n" for line in lines))
    return len(lines)


def import_batch(journal: Journal, jobs: Iterable[Job], path: Path, price: Price, re_asks: int) -> Counter[str]:
    """Journal the answers of a batch's output or error file; what is journalled already is not counted again.

    Returns how many lines were `answered`, `known`, `unknown` (no job of these settings), `failed`, or no such line
    (`malformed`).

    Raises:
        DataError: the file cannot be read or is no list of JSON values.
    """
    by_id = {job.id: job for job in jobs}
    counts: Counter[str] = Counter()
    for _, row in json_rows(path):
        counts[_import(journal, by_id, row, price, re_asks)] += 1
    return counts


def _import(journal: Journal, jobs: Mapping[str, Job], row: Any, price: Price, re_asks: int) -> str:
    name = row.get("custom_id") if isinstance(row, dict) else None
    if not isinstance(name, str):
        return "malformed"
    if name not in jobs:
        return "unknown"
    job, history = jobs[name], journal.history(name)
    completion = _completion(row)
    if history.settled(re_asks) or (completion and any(completion == each.completion for each in history.answers)):
        return "known"
    tokens_in, tokens_out = job.request().bound()
    asked = {"medium": job.record.id, "model": job.asking.model, "template": job.asking.template.digest, "batch": True}
    attempt = journal.sent(name, tokens_in + tokens_out, price.usd(tokens_in, tokens_out), asked)
    if completion is None:
        journal.fault(name, attempt, "batch", json.dumps(row.get("error") or row.get("response"))[:160], unbilled=True)
        return "failed"
    usage = (completion.tokens_in, completion.tokens_out) if completion.counted else (tokens_in, tokens_out)
    journal.answer(name, attempt, completion, parse(job.asking.template, completion)[1], price.usd(*usage), 0.0)
    return "answered"


def _completion(row: Mapping[str, Any]) -> Completion | None:
    """The answer in a line; None where it holds none."""
    response = row.get("response")
    body = response.get("body") if isinstance(response, dict) and response.get("status_code") == 200 else None
    choice = next(iter(_dicts(body, "choices")), None)
    message = choice.get("message") if choice else None
    if not isinstance(body, dict) or choice is None or not isinstance(message, dict):
        return None
    text, usage = message.get("content"), body.get("usage")
    tokens = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    counted = all(isinstance(each, int) for each in tokens)
    return Completion(
        text=text if isinstance(text, str) else "",
        finish_reason=str(choice.get("finish_reason")),
        refusal=bool(message.get("refusal")),
        model=str(body.get("model", "")),
        tokens_in=tokens[0] if counted else 0,  # type: ignore[arg-type]  # `counted` says that they are
        tokens_out=tokens[1] if counted else 0,  # type: ignore[arg-type]
        counted=counted,
    )


def _dicts(holder: Any, key: str) -> Iterator[dict[str, Any]]:
    found = holder.get(key) if isinstance(holder, dict) else None
    yield from (each for each in found if isinstance(each, dict)) if isinstance(found, list) else ()
