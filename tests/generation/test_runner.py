import asyncio
import email.utils
import json
import time
from datetime import datetime

import pytest

from macaw_lit.errors import ConfigError
from macaw_lit.generation.budget import Budget, Price
from macaw_lit.generation.chat import ChatBackend
from macaw_lit.generation.journal import Journal
from macaw_lit.generation.runner import GenerationError, Limits, Runner

PRICE = Price(1.0, 2.0)


def ask(server, jobs, path, budget=None, model="tiny", **limits):
    """Runs the jobs; the journal's lines and how the run ended."""
    limits = Limits(**{"concurrency": 4, "backoff": 0.01, "timeout": 5.0, **limits})

    async def go():
        with Journal(path / "journal.jsonl", budget) as journal:
            outcome = await Runner(ChatBackend(model, server.url), journal, limits, PRICE).run(jobs)
            return journal, outcome

    return asyncio.run(go())


def test_every_job_is_settled_once_and_the_key_is_only_on_the_wire(server, jobs, tmp_path):
    journal, outcome = ask(server, jobs, tmp_path)
    assert (outcome.settled, outcome.before, outcome.left, outcome.stopped) == (12, 0, 0, None)
    assert sorted(call.about for call in server.calls) == sorted(f"medium {n}" for n in range(12))
    assert all([answer.fault for answer in journal.history(job.id).answers] == [None] for job in jobs)
    assert journal.budget.spent == pytest.approx({"requests": 12, "tokens": 12 * 150, "usd": 12 * 200e-6})
    assert server.keys == {f"Bearer {server.key}"}
    assert server.key not in (tmp_path / "journal.jsonl").read_text()


def test_a_second_run_asks_nothing(server, jobs, tmp_path):
    ask(server, jobs, tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    _, outcome = ask(server, jobs, tmp_path)
    assert (outcome.settled, outcome.before) == (0, 12)
    assert len(server.calls) == 12
    assert (tmp_path / "journal.jsonl").read_bytes() == before


TRANSIENT = {
    "429 without Retry-After": (429, {}, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}),
    "500": (500, {}, {"error": {"message": "oops"}}),
    "502 with an HTML page": (502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>"),
    "503": (503, {}, b""),
    "408": (408, {}, {"error": {"message": "too slow"}}),
    "409": (409, {}, {"error": {"message": "conflict"}}),
    "connection dropped": {"drop": True},
    "body cut": {"text": "any", "cut": True},
    "empty body": b"",
    "no JSON": b"<html>",
    "JSON of something else": {"hello": 1},
    "no choices": {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": []},
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_a_fault_that_passes_is_tried_again(server, jobs, tmp_path, fault):
    def script(call, number):
        return (dict(fault) if isinstance(fault, dict) else fault) if number == 0 else {"pairs": 2}

    server.script = script
    _, outcome = ask(server, jobs[:3], tmp_path)
    assert (outcome.settled, outcome.left, outcome.faults.total()) == (3, 0, 3)
    assert len(server.calls) == 6


@pytest.mark.parametrize(
    "header", [{"Retry-After": "1"}, {"retry-after-ms": "1000"}, "date"], ids=["seconds", "milliseconds", "date"]
)
def test_retry_after_is_honoured(server, jobs, tmp_path, header):
    def script(call, number):
        if number:
            return {"pairs": 2}
        given = {"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)} if header == "date" else header
        return 429, given, {"error": {"message": "later"}}

    server.script = script
    ask(server, jobs[:1], tmp_path)
    first, second = server.about("medium 0")
    assert second.time - first.time >= 0.95  # a date has whole seconds: two from now are at least one


def test_a_server_that_asks_to_wait_for_a_day_ends_the_run(server, jobs, tmp_path):
    server.script = lambda *_: (429, {"Retry-After": "86400"}, {"error": {"message": "later"}})
    with pytest.raises(GenerationError, match="asks to wait 86400 s"):
        ask(server, jobs, tmp_path)


FATAL = {
    "quota": (429, {}, {"error": {"message": "no credit", "code": "insufficient_quota", "type": "insufficient_quota"}}),
    "key": (401, {}, {"error": {"message": "bad key"}}),
    "not_found": (404, {}, {"error": {"message": "model gone"}}),
}


@pytest.mark.parametrize("cause", FATAL)
def test_nothing_is_sent_after_a_fatal_fault(server, jobs, tmp_path, cause):
    server.script = lambda *_: FATAL[cause]
    with pytest.raises(GenerationError, match=f"^{cause}: .*run the same command again"):
        ask(server, jobs, tmp_path, concurrency=1)
    assert len(server.calls) == 1


def test_a_request_that_is_refused_for_itself_is_left_and_the_others_go_on(server, jobs, tmp_path):
    bad = (400, {}, {"error": {"message": "context length exceeded"}})
    server.script = lambda call, number: bad if call.about == "medium 1" else {"pairs": 2}
    _, outcome = ask(server, jobs, tmp_path)
    assert (outcome.settled, outcome.left) == (11, 1)
    assert len(server.about("medium 1")) == 1


def test_a_server_that_is_down_ends_the_run(server, jobs, tmp_path):
    server.script = lambda *_: (500, {}, {"error": {"message": "oops"}})
    with pytest.raises(GenerationError, match="5 media in a row brought no answer"):
        ask(server, jobs, tmp_path, attempts=2, concurrency=1)
    assert len(server.calls) == 10


def test_a_hanging_request_ends_by_the_clock(server, jobs, tmp_path):
    def script(call, number):
        time.sleep(0 if number else 1.0)
        return {"pairs": 2}

    server.script = script
    journal, outcome = ask(server, jobs[:1], tmp_path, timeout=0.3)
    assert (outcome.settled, outcome.faults["timeout"]) == (1, 1)
    # It may have been worked on, so that its reservation stands beside the 150 tokens of the second.
    assert journal.budget.spent["tokens"] == 150 + sum(jobs[0].request().bound())


RE_ASKED = {
    "count": {"pairs": 3},
    "refusal": {"text": "I'm sorry, I cannot do that."},
    "length": {"text": '{"pairs": [{"instruction": "What is it?", "resp', "finish": "length"},
    "malformed": {"text": "pairs there are none"},
}


@pytest.mark.parametrize("fault", RE_ASKED)
def test_a_bad_answer_is_asked_for_again(server, jobs, tmp_path, fault):
    server.script = lambda call, number: {"pairs": 2} if number else dict(RE_ASKED[fault])
    journal, outcome = ask(server, jobs[:1], tmp_path)
    assert outcome.settled == 1
    assert [answer.fault for answer in journal.history(jobs[0].id).answers] == [fault, None]
    limits = [call.body["max_tokens"] for call in server.calls]
    assert limits == ([100, 200] if fault == "length" else [100, 100])


def test_bad_answers_are_asked_for_again_so_often_and_no_more_even_across_runs(server, jobs, tmp_path):
    server.script = lambda *_: dict(RE_ASKED["malformed"])
    _, outcome = ask(server, jobs[:2], tmp_path, re_asks=2)
    assert (outcome.settled, len(server.calls)) == (2, 6)
    _, outcome = ask(server, jobs[:2], tmp_path, re_asks=2)
    assert (outcome.before, len(server.calls)) == (2, 6)


def test_no_more_requests_are_under_way_than_allowed(server, jobs, tmp_path):
    server.delay = 0.05
    ask(server, jobs, tmp_path, concurrency=3)
    assert server.most_inside == 3


def test_the_pace_is_kept(server, jobs, tmp_path):
    ask(server, jobs[:6], tmp_path, requests_per_minute=1200.0)
    lines = map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines())
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in lines if line["event"] == "sent"]
    # 1200 a minute are 50 ms apart. One may start late and the next on time, but the first is never late; times in ms.
    assert times[-1] - times[0] >= 5 * 0.05 - 0.005


FENCED = """Here you are:
```json
{"pairs": [{"instruction": "What is it?", "response": "A cup.", "type": "object"},
           {"instruction": "Where is it?", "response": "On a table.", "type": "position"}]}
```
Tell me if you want more."""


def test_a_server_without_schemas_is_asked_without(server, jobs, tmp_path):
    def script(call, number):
        if "response_format" in call.body:
            return 400, {}, {"error": {"message": "response_format is not supported"}}
        return {"text": FENCED}

    server.script = script
    _, outcome = ask(server, jobs, tmp_path, concurrency=1)
    kinds = [call.body.get("response_format", {}).get("type") for call in server.calls]
    assert outcome.settled == 12
    assert kinds == ["json_schema", "json_object", *[None] * 12]


@pytest.mark.parametrize("limit", [{"max_requests": 5}, {"max_tokens": 1000}, {"max_usd": 1000e-6}], ids=str)
def test_the_budget_is_never_overdrawn(server, jobs, tmp_path, limit):
    server.delay = 0.02
    ((name, most),) = limit.items()
    journal, outcome = ask(server, jobs, tmp_path, Budget(**limit), concurrency=8)
    assert outcome.stopped
    assert 0 < outcome.settled < 12
    assert len(server.calls) == outcome.settled
    assert journal.budget.spent[name.removeprefix("max_")] <= most
    again, outcome = ask(server, jobs, tmp_path, Budget(**limit))  # what was spent before counts
    assert outcome.settled == 0
    assert again.budget.spent == journal.budget.spent


def test_a_wrong_start_stops_before_the_first_request(server, jobs, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"model=tinny: .* no such model; it has tiny"):
        ask(server, jobs, tmp_path, model="tinny")
    server.models = (401, {}, {"error": {"message": "bad key"}})
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds a key that it refuses"):
        ask(server, jobs, tmp_path)
    server.models = (404, {}, {"error": {"message": "no such page"}})
    with pytest.raises(ConfigError, match="has no list of models; give api.base_url up to and with /v1"):
        ask(server, jobs, tmp_path)
    server.models = b"<html>"
    monkeypatch.setattr("macaw_lit.generation.chat.TRIES", 1)
    with pytest.raises(ConfigError, match="check api.base_url"):
        ask(server, jobs, tmp_path)
    assert server.calls == []
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        ask(server, jobs, tmp_path)


def test_no_server_is_said_in_one_line(jobs, tmp_path, server, monkeypatch):
    monkeypatch.setattr("macaw_lit.generation.chat.TRIES", 1)
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(ConfigError, match=r"api.base_url=http://127.0.0.1:9/v1: Connection error"):
        ask(server, jobs, tmp_path)
    server.url = "localhost:8000"
    with pytest.raises(ConfigError, match="expected http://"):
        ask(server, jobs, tmp_path)
