"""The run is killed (SIGKILL) at random points and started again, until everything is settled."""

import asyncio
import os
import random
import signal
import threading
import time

import pytest

from macaw_lit.generation.assemble import assemble
from macaw_lit.generation.budget import Price
from macaw_lit.generation.chat import ChatBackend
from macaw_lit.generation.journal import Journal
from macaw_lit.generation.records import Record
from macaw_lit.generation.runner import Limits, Runner
from macaw_lit.generation.writers import write_items

LIMITS = Limits(concurrency=3, backoff=0.01, timeout=5.0)


def run_in_child(server, jobs, path):
    """Forks a process that settles the jobs; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:

        async def go():
            with Journal(path) as journal:
                await Runner(ChatBackend("tiny", server.url), journal, LIMITS, Price()).run(jobs)

        asyncio.run(go())
        code = 0
    finally:
        os._exit(code)


def settled(path, jobs):
    with Journal(path) as journal:
        return {job.record.texts[0] for job in jobs if journal.history(job.id).settled(LIMITS.re_asks)}


def built(path, jobs, folder):
    with Journal(path) as journal:
        items = assemble(journal, jobs, near_duplicate=None).items
    (written,) = write_items(items, folder, ["llava"])
    return [(item.uid, item.pairs) for item in items], written.read_bytes()


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_nothing_is_lost_doubled_or_billed_again(server, tmp_path, asking, kills):
    jobs = [asking.job(Record(f"{n}.jpg", "image", "coco", (f"medium {n}",))) for n in range(4 * kills)]
    path, rng, victim = tmp_path / "journal.jsonl", random.Random(0), {}

    def script(call, number):
        if victim and len(server.calls) >= victim["at"]:
            phase, child = victim["phase"], victim["child"]
            victim.clear()
            if phase == "request":  # it is under way and nothing is known of it
                os.kill(child, signal.SIGKILL)
            elif phase == "body":
                time.sleep(0.01)
                os.kill(child, signal.SIGKILL)
                return {"pairs": 2, "cut": True}
            else:  # the answer is out, and may be journalled or not
                threading.Timer(rng.uniform(0, 0.02), os.kill, (child, signal.SIGKILL)).start()
        return {"pairs": 2}

    server.script = script
    for _ in range(kills):
        done, asked = settled(path, jobs), len(server.calls)
        child = run_in_child(server, jobs, path)
        victim.update(at=asked + rng.randint(1, 3), child=child, phase=rng.choice(["request", "body", "answer"]))
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        victim.clear()
        if rng.random() < 0.5:
            with path.open("ab") as file:  # as a crash of the machine may leave it
                file.write(b'{"event": "answer", "job": "torn')
        assert done <= settled(path, jobs)  # nothing that was there is lost
        assert done.isdisjoint(call.about for call in server.calls[asked:])  # nor asked, and billed, again

    done, asked = settled(path, jobs), len(server.calls)
    _, status = os.waitpid(run_in_child(server, jobs, path), 0)
    assert status == 0
    assert {call.about for call in server.calls[asked:]} == {job.record.texts[0] for job in jobs} - done
    assert settled(path, jobs) == {job.record.texts[0] for job in jobs}
    items, data = built(path, jobs, tmp_path / "a")
    assert [uid for uid, _ in items] == [f"{job.id}/{number}" for job in jobs for number in range(2)]
    assert built(path, jobs, tmp_path / "b") == (items, data)  # the same journal, the same bytes
    with Journal(path) as journal:  # requests of which nothing came back stay counted as spent
        assert journal.budget.spent["requests"] >= len(server.calls)
