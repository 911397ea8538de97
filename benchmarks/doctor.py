"""How fast the doctor is: pictures of COCO's size per CPU-second of one core, and a whole corpus of shared media.

The pictures are noise of 640×480 in files somewhat larger than COCO's. `--rows` rows on them go through the reader of
Macaw-LLM's data, the counting and the child processes in header mode; memory is the peak of the parent and of the
greatest child.
"""

import argparse
import json
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from macaw_lit.data.doctor.examine import Medium, examine, examine_all
from macaw_lit.data.doctor.survey import survey
from macaw_lit.data.doctor.texts import TextRuler
from macaw_lit.data.sources import macaw

PROMPT = "What can be seen beside the object in the middle of the picture number {}?"


def write_pictures(folder: Path, count: int) -> list[str]:
    """`count` JPEGs of blurred noise, which take the space of photographs."""
    rng = np.random.default_rng(0)
    names = [f"COCO_train2014_{number:012d}.jpg" for number in range(count)]
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / name, quality=95)
    return names


def write_rows(path: Path, names: list[str], count: int) -> None:
    """A file as Macaw-LLM's, of texts as long as the paper's."""
    rows = [
        {"id": names[row % len(names)], "instruction": PROMPT.format(row), "response": "There is a red cup. " * 3}
        for row in range(count)
    ]
    path.write_text(json.dumps({"data": rows}))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_pictures(folder, given.pictures)
        size = sum((folder / each).stat().st_size for each in names) / len(names)
        print(f"{len(names)} pictures of {size / 1000:.0f} KB")
        for mode in ("header", "full"):
            examine(Medium("image", str(folder / names[0])), mode)
            start = time.process_time()
            for each in names:
                assert examine(Medium("image", str(folder / each)), mode).cause is None
            print(f"{mode}: {len(names) / (time.process_time() - start):.0f} pictures per CPU-second of one core")
        write_rows(folder / "rows.json", names, given.rows)
        reader = partial(macaw.read, folder / "rows.json", folder, "image")
        check = partial(examine_all, journal=folder / "journal", mode="header", workers=given.workers)
        start, begun = time.monotonic(), time.process_time()
        report = survey({"train": {"corpus": reader}}, TextRuler(512), check)
        wall, busy = time.monotonic() - start, time.process_time() - begun
        peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(f"{report.rows} rows, {report.media} media: {wall:.1f} s, {busy:.1f} CPU-seconds in the parent")
        print(f"peak memory: parent {peaks[0]:.0f} MiB, greatest child {peaks[1]:.0f} MiB")


if __name__ == "__main__":
    main()
