"""Two processes of which one never sees a medium, or sends tokens to other experts, are like one with all rows."""

import csv
from pathlib import Path

import pytest
from safetensors.torch import load_file

LIMIT = 600
KINDS = ("ddp", "fsdp2", "zero2", "zero3")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT + 60)]


@pytest.fixture(scope="module")
def trained(together, one_agent, tokenizer_folder, tmp_path_factory) -> Path:
    """What `figures.py` leaves of one process and of two, all strategies in one start, which takes longest."""
    out = tmp_path_factory.mktemp("figures")
    words = (str(Path(__file__).with_name("figures.py")), str(tokenizer_folder), str(out))
    together([[*words, "plain"]], out, LIMIT)
    together([one_agent(2, *words, *KINDS)], out, LIMIT)
    return out


def logged(folder: Path, prefix: str) -> dict[tuple[str, str], float]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [((row["step"], name), value) for row in rows for name, value in row.items()]
    return {place: float(value) for place, value in cells if value and place[1].startswith(prefix)}


def test_gradients_and_losses_by_part_are_whole_under_every_strategy(trained):
    for prefix, count in (("gradient/", 4 * 6), ("loss/", 4 * 2 - 1)):
        alone = logged(trained / "plain", prefix)
        assert len(alone) == count
        for kind in KINDS:
            # float32, added up in another order, after up to three updates
            assert logged(trained / kind, prefix) == pytest.approx(alone, rel=1e-4, abs=1e-7), (kind, prefix)
    for kind in KINDS:
        speed = logged(trained / kind, "speed/")
        assert {name for _, name in speed} >= {"speed/samples_per_s", "speed/tokens_per_s", "speed/mfu"}
        # The first process, which writes, has no medium to tell about.
        assert not logged(trained / kind, "health/")


def test_experts_that_one_process_alone_sends_tokens_to(trained):
    folder = trained / "experts"
    alone = load_file(folder / "plain" / "model" / "model.safetensors")
    length = sum(tensor.double().square().sum() for tensor in alone.values())
    for kind in ("fsdp2", "zero3"):
        beside = load_file(folder / kind / "model" / "model.safetensors")
        off = sum((alone[name].double() - beside[name].double()).square().sum() for name in alone)
        assert (off / length).sqrt() < 1e-6, "float32 sums in another order"
