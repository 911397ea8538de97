"""Figures of two processes, one of which never sees a medium, are those of one process with all rows."""

import csv
from pathlib import Path

import pytest

LIMIT = 600
KINDS = ("ddp", "fsdp2", "zero2", "zero3")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT + 60)]


def logged(folder: Path, prefix: str) -> dict[tuple[str, str], float]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [((row["step"], name), value) for row in rows for name, value in row.items()]
    return {place: float(value) for place, value in cells if value and place[1].startswith(prefix)}


def test_gradients_and_losses_by_part_are_whole_under_every_strategy(together, one_agent, tokenizer_folder, tmp_path):
    script = str(Path(__file__).with_name("figures.py"))
    together([[script, str(tokenizer_folder), str(tmp_path), "plain"]], tmp_path, LIMIT)
    together([one_agent(2, script, str(tokenizer_folder), str(tmp_path), *KINDS)], tmp_path, LIMIT)
    for prefix, count in (("gradient/", 4 * 6), ("loss/", 4 * 2 - 1)):
        alone = logged(tmp_path / "plain", prefix)
        assert len(alone) == count
        for kind in KINDS:
            # float32, added up in another order, after up to three updates
            assert logged(tmp_path / kind, prefix) == pytest.approx(alone, rel=1e-4, abs=1e-7), (kind, prefix)
    for kind in KINDS:
        speed = logged(tmp_path / kind, "speed/")
        assert {name for _, name in speed} >= {"speed/samples_per_s", "speed/tokens_per_s", "speed/mfu"}
        # The first process, which writes, has no medium to tell about.
        assert not logged(tmp_path / kind, "health/")
