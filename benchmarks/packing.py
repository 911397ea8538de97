"""What packing the rows of a batch saves: `python benchmarks/packing.py` after `make train` has rendered the demo.

CPU-seconds of one thread for forward and backward pass of the demo's training batches, collation included, each batch
padded and packed by turns. A ratio is of one batch; its spread is over batches. The first batch of each is thrown away.
"""

import argparse
import statistics
import time
import warnings
from itertools import islice
from pathlib import Path

from hydra import compose, initialize_config_dir

from macaw_lit.build import attach, build_data, build_module, set_up
from macaw_lit.cli import conf_dir
from macaw_lit.data.collate import Collator
from macaw_lit.data.mix import MixtureSampler
from macaw_lit.data.rows import Rows
from macaw_lit.model import Macaw
from macaw_lit.types import Batch, Example


def step(model: Macaw, collate: Collator, examples: list[Example]) -> tuple[float, Batch, float]:
    """CPU-seconds, the batch, and its mean loss."""
    begin = time.process_time()
    batch = collate(examples)
    output = model(batch)
    (output.nll / output.tokens).backward()
    seconds = time.process_time() - begin
    model.zero_grad()
    return seconds, batch, float(output.nll / output.tokens)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, as for macaw_lit.train")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        choice = ["experiment=demo", f"paths.root_dir={Path.cwd()}", *arguments.set]
        cfg = compose("train", choice)
    set_up(cfg)
    module, data = build_module(cfg), build_data(cfg)
    attach(data, module)
    data.setup("fit")
    module.configure_model()
    model, preprocess = module.model.train(), data.preprocess
    rows = Rows(data.samples["train"], preprocess)
    mixture = MixtureSampler([len(samples) for samples in data.samples["train"].values()], data.counts, cfg.seed, True)
    draws = iter(mixture)
    collators = {
        "padded": Collator(preprocess.pad, preprocess.specs, "right"),
        "packed": Collator(preprocess.pad, preprocess.specs, "right", preprocess.max_length),
    }
    found: dict[str, list[tuple[float, Batch, float]]] = {name: [] for name in collators}
    for _ in range(arguments.batches + 1):
        examples = [rows[draw] for draw in islice(draws, data.batch_size)]
        for name, collate in collators.items():
            found[name].append(step(model, collate, examples))
    print("| | rows of a batch | positions of a row | padding | CPU-s per batch | CPU-s per 53 questions |")
    print("|---|---|---|---|---|---|")
    asked = [int((batch.labels == preprocess.eos).sum()) for _, batch, _ in found["padded"][1:]]
    for name, steps in found.items():
        batches = [batch for _, batch, _ in steps[1:]]
        seconds = sum(spent for spent, _, _ in steps[1:])
        laid = sum(batch.input_ids.numel() for batch in batches)
        padding = 1 - sum(int(batch.attention_mask.sum()) for batch in batches) / laid
        shapes = (statistics.mean(batch.input_ids.shape[axis] for batch in batches) for axis in (0, 1))
        figures = [*(f"{size:.1f}" for size in shapes), f"{padding:.1%}", f"{seconds / len(batches):.3f}"]
        print(f"| {name} | {' | '.join(figures)} | {53 * seconds / sum(asked):.3f} |")
    pairs = list(zip(found["padded"][1:], found["packed"][1:], strict=True))
    ratios = sorted(padded[0] / packed[0] for padded, packed in pairs)
    low, middle, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.1, 0.5, 0.9))
    print(f"\npadded / packed: median {middle:.2f}, 10 % to 90 % of batches {low:.2f} to {high:.2f}")
    print(f"largest difference of a batch's mean loss, relative: {max(abs(a[2] / b[2] - 1) for a, b in pairs):.1e}")


if __name__ == "__main__":
    main()
