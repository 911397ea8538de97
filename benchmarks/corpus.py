"""The paper's mixture at its full size but for its media: 50,000 rows each of pictures, videos and text, in real files.

Rows have texts of a real length and share `--media` pictures (empty files: readers do not open them) and as many videos
of the demo world (which readers open once each, to see whether they have sound). Measured are the readers, the order of
an epoch over two processes, and one epoch through the loader with two workers that decode nothing. Memory is the
parent's peak resident set, and the greatest sum of the proportional shares (PSS) of the parent and its workers, taken
every 200 batches.
"""

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from doctor import write_rows

from macaw_lit.data.collate import Collator
from macaw_lit.data.datamodule import MacawDataModule, Source
from macaw_lit.data.demo.clip import write_clip
from macaw_lit.data.demo.scenes import clips
from macaw_lit.data.mix import MixtureSampler
from macaw_lit.data.rows import Loader, Rows
from macaw_lit.data.sources import alpaca, macaw
from macaw_lit.types import Example, Sample

RESPONSE = "Cut the fruit, add the sugar and the milk, and stir for two minutes. " * 5
COLUMNS = (
    "rows",
    "to write",
    "to read",
    "rows per CPU-second",
    "order of an epoch",
    "through 2 workers",
    "parent's peak",
    "PSS of all",
    "state",
)


def write_corpus(folder: Path, rows: int, media: int) -> dict[str, Source]:
    """Files of `rows` rows for each of three sources, and the media that they share."""
    pictures = [f"COCO_train2014_{number:012d}.jpg" for number in range(media)]
    videos = [f"{number:05d}.mp4" for number in range(media)]
    for name in pictures:
        (folder / name).touch()
    write_clip(folder / videos[0], next(clip for clip in clips(random.Random(0), 8) if clip.sound))
    for name in videos[1:]:
        (folder / name).write_bytes((folder / videos[0]).read_bytes())
    write_rows(folder / "image.json", pictures, rows)
    write_rows(folder / "video.json", videos, rows)
    texts = [{"instruction": f"Give me recipe {row}.", "input": "", "output": RESPONSE} for row in range(rows)]
    (folder / "text.json").write_text(json.dumps(texts))
    kinds = {kind: partial(macaw.read, folder / f"{kind}.json", folder, kind) for kind in ("image", "video")}
    reads = {**kinds, "text": partial(alpaca.read, folder / "text.json")}
    return {name: Source(read, rows) for name, read in reads.items()}


def touch(sample: Sample, epoch: int) -> Example:
    """An example that has only read the sample."""
    length = sum(len(turn.text) for turn in sample.turns)
    ids = torch.full((8,), length)
    return Example(ids, ids, {}, {}, sample.uid)


def pss() -> float:
    """GiB that this process and its children hold."""
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    texts = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("Pss:")) / 2**20


def main() -> None:
    """Print a row of a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="of each source")
    parser.add_argument("--media", type=int, default=1000, help="pictures, and as many videos")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        data = MacawDataModule(write_corpus(Path(name), given.rows, given.media))
        written = time.monotonic() - start
        start, begun = time.monotonic(), time.process_time()
        data.setup("fit")
        read, busy = time.monotonic() - start, time.process_time() - begun
        samples = data.samples["train"]
        lengths = [len(rows) for rows in samples.values()]
        start = time.monotonic()
        shares = [list(MixtureSampler(lengths, data.counts, rank=rank, world=2)) for rank in range(2)]
        ordered = time.monotonic() - start
        assert len({draw.row for share in shares for draw in share}) == sum(lengths)
        start, held, used = time.monotonic(), 0.0, 0
        loader = Loader(
            Rows(samples, touch),
            Collator(0, {}, "right"),
            2,
            sampler=MixtureSampler(lengths, data.counts),
            batch_size=32,
        )
        for number, batch in enumerate(loader):
            used += len(batch.uids)
            held = max(held, pss()) if number % 200 == 0 else held
        held = max(held, pss())
        loaded = time.monotonic() - start
        assert used == sum(lengths)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    order = MixtureSampler(lengths, data.counts)
    shares = zip(samples, zip(order.lengths, order.sizes, order.passes, strict=True), strict=True)
    mixture = {"seed": 2**31} | {f"source {source}": share for source, share in shares}
    state = len(json.dumps({"epoch": 1, "position": 10**6, "mixture": mixture}))
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    seconds = f"| {used:,} | {written:.1f} s | {read:.1f} s | {used / busy:,.0f} | {ordered:.2f} s | {loaded:.1f} s "
    print(seconds + f"| {peak:.2f} GiB | {held:.2f} GiB | {state} bytes |")


if __name__ == "__main__":
    main()
