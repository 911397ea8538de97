"""Processes that hang, die or refuse; the tasks are of the standard library, so that any process can import them."""

import operator
import os
import time
from functools import partial

from macaw_lit.data.doctor.pool import CHUNK, Failure, run


def test_every_item_has_its_result_once() -> None:
    items = list(range(5 * CHUNK + 3))
    assert sorted(run(operator.neg, items, workers=3)) == [(item, -item) for item in items]
    assert list(run(operator.neg, [], workers=3)) == []


def test_what_hangs_or_dies_is_named_and_the_rest_is_done() -> None:
    good = [partial(abs, -number) for number in range(2 * CHUNK)]
    hangs, dies, killed = partial(time.sleep, 600), partial(os._exit, 3), partial(os.abort)
    items = [*good[:3], hangs, *good[3:20], dies, killed, *good[20:]]
    start = time.monotonic()
    found = dict(run(operator.call, items, workers=2, seconds=2.0))
    # Two seconds for the one that hangs, and the start of four more processes on a busy machine.
    assert time.monotonic() - start < 60
    assert [found[item] for item in good] == list(range(2 * CHUNK))
    failures = {item: found[item] for item in (hangs, dies, killed)}
    assert all(isinstance(failure, Failure) for failure in failures.values())
    assert failures[hangs] == Failure("timeout", "no answer within 2 s")
    assert failures[dies] == Failure("crashed", "its process died with exit code 3")
    assert failures[killed] == Failure("crashed", "its process died with exit code -6")


def test_a_slow_consumer_is_no_time_out() -> None:
    found = []
    for _, result in run(operator.neg, range(2 * CHUNK), workers=2, seconds=0.5):
        found.append(result)
        time.sleep(0.6 if len(found) < 4 else 0)
    assert sorted(found) == sorted(-item for item in range(2 * CHUNK))


def test_breaking_off_leaves_no_process_behind() -> None:
    pids = set()
    for _, pid in run(operator.call, [os.getpid] * 3 * CHUNK, workers=2):
        pids.add(pid)
        if len(pids) == 2:
            break
    assert os.getpid() not in pids
    end = time.monotonic() + 10
    while time.monotonic() < end and any(_is_alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(_is_alive(pid) for pid in pids)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
