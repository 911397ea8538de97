"""However unfairly media, responses and rows are dealt out, no strategy hangs, and all do what one process does.

`pytest -m exhaustive tests/distributed/test_schedules.py` runs the whole matrix, of 200 steps or of as many as
SCHEDULE_STEPS says.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).with_name("schedules.py"))
STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
EQUAL = ("text_only", "alternating", "silent", "uneven", "generating", "dealt")
LIMIT = 900  # seconds; the first run of DeepSpeed on a machine compiles for minutes
MATRIX_STEPS, MATRIX_LIMIT = int(os.environ.get("SCHEDULE_STEPS", "200")), 5400
Matrix = Callable[[str, int], Path]


def distance(first: Path, second: Path) -> float:
    """Of the weights of two runs, relative to how long they are."""
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    off = sum((one[name].double() - other[name].double()).square().sum() for name in one)
    return float((off / sum(tensor.double().square().sum() for tensor in one.values())).sqrt())


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "losses.json").read_text())


def answers(folder: Path) -> dict[str, list[list[int]]]:
    """Of all processes: step, batch and process → new ids."""
    found = {}
    for path in (folder / "generating").glob("answers*.json"):
        found |= json.loads(path.read_text())
    return found


def check(alone: Path, beside: Path, world: int, steps: int) -> None:
    """`alone` has what one process makes of the rows of all, `beside` what they make of them."""
    for name in EQUAL:
        # Float32 sums in another order: measured below 1e-8 after 20 steps of two processes.
        assert distance(alone / name, beside / name) < 1e-6, (name, beside)
        assert losses(beside / name) == pytest.approx(losses(alone / name), rel=1e-5, abs=1e-6), (name, beside)
        assert len(losses(beside / name)) >= steps
    for name in EQUAL[1:]:
        assert distance(alone / EQUAL[0], alone / name) > 1e-5, "other rows lead elsewhere"
    assert answers(beside) == answers(alone) != {}
    ledger = json.loads((beside / "left_over" / "ledger.json").read_text())
    assert ledger["seen"] == ledger["used"] == rows_of_steps(steps, world), "of 25 rows one is left out per epoch"


def rows_of_steps(steps: int, world: int) -> int:
    """Rows in `steps` steps of two batches of 5 rows in each process, where an epoch has 24 rows and ends its step."""
    each = 24 // world
    batches = [min(5, each - start) for start in range(0, each, 5)]
    in_steps = [sum(batches[start : start + 2]) for start in range(0, len(batches), 2)]
    return world * sum(in_steps[step % len(in_steps)] for step in range(steps))


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT + 60)
def test_two_processes_neither_hang_nor_differ(together, one_agent, tokenizer_folder, tmp_path):
    steps, rest = 8, (str(tokenizer_folder), str(tmp_path))
    together([[SCRIPT, "plain2", str(steps), *rest]], tmp_path, LIMIT)
    together([one_agent(2, SCRIPT, ",".join(STRATEGIES), str(steps), *rest)], tmp_path, LIMIT)
    for strategy in STRATEGIES:
        check(tmp_path / "plain2", tmp_path / strategy, 2, steps)


@pytest.fixture(scope="module")
def alone(together, tokenizer_folder, tmp_path_factory) -> Path:
    """What one process makes of the rows of two and of four."""
    out = tmp_path_factory.mktemp("alone")
    words = [SCRIPT, "plain2,plain4", str(MATRIX_STEPS), str(tokenizer_folder), str(out)]
    together([words], out, MATRIX_LIMIT)
    return out


@pytest.mark.exhaustive
@pytest.mark.timeout(2 * MATRIX_LIMIT)
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_hangs_or_differs_in_the_long_run(
    together, one_agent, tokenizer_folder, tmp_path, alone, strategy, world
):
    rest = (str(MATRIX_STEPS), str(tokenizer_folder), str(tmp_path))
    together([one_agent(world, SCRIPT, strategy, *rest)], tmp_path, MATRIX_LIMIT)
    check(alone / f"plain{world}", tmp_path / strategy, world, MATRIX_STEPS)
