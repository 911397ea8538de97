"""How fast batches of the paper's mix come, with and without the cache.

A third each of texts, pictures (JPEGs of COCO's size) and videos with their sound (H.264 and AAC of Charades' size,
30 s), all of invented content that takes the space of real media. Each row has a medium of its own, as in the first
epoch of a run. `cold` fills the cache, `warm` finds all there. Model and tokenizer play no part: slots and inputs are
those of CLIP ViT-B/16 and Whisper-base, texts are bytes. CPU time per medium is that of one process, which depends less
than rows per second on what else runs on the machine.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from macaw_lit.data.datamodule import MacawDataModule, Source
from macaw_lit.data.media.disk import DiskCache
from macaw_lit.data.prepared import SETTLED_NS, Prepared
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.encoders.clip import ClipTransform
from macaw_lit.encoders.whisper import LogMel
from macaw_lit.types import MediaRef, MediaSpec, Sample, Turn

RATE, FPS, SIZE = 44_100, 30, (480, 640)


def clouds(draw: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Pictures between smooth and noisy, which compress as photographs do, uint8 [count,H,W,3]."""
    height, width = size
    small = draw.integers(0, 256, (count, height // 4, width // 4, 3), dtype=np.uint8)
    large = [Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC) for each in small]
    return np.stack([np.asarray(each) for each in large])


def write_video(path: Path, draw: np.random.Generator, seconds: int) -> None:
    """A camera that wanders over a large picture, and a sound that swells."""
    height, width = SIZE
    scene = clouds(draw, 1, (height + 256, width + 256))[0]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "28", "preset": "veryfast"})
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        video.thread_count = 1
        sound: Any = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(seconds * FPS):
            x, y = (int(128 + 127 * f(number / 40 + draw.normal(0, 0.002))) for f in (np.sin, np.cos))
            part = np.ascontiguousarray(scene[y : y + height, x : x + width])
            container.mux(video.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
        container.mux(video.encode())
        times = np.arange(seconds * RATE) / RATE
        wave = (0.2 * np.sin(2 * np.pi * 300 * times) * np.sin(times) + draw.normal(0, 0.02, len(times))).astype("f4")
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024].copy(), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


def write_media(folder: Path, each: int, seconds: int) -> None:
    """`each` pictures and videos; every video is encoded once and copied, with its number behind the last box."""
    draw = np.random.default_rng(0)
    for number, picture in enumerate(clouds(draw, each, SIZE)):
        Image.fromarray(picture).save(folder / f"{number}.jpg", quality=90)
    originals = min(each, 4)
    for number in range(each):
        path = folder / f"{number}.mp4"
        if number < originals:
            write_video(path, draw, seconds)
        else:  # a box of type `free` makes another content of it, which players pass over
            content = (folder / f"{number % originals}.mp4").read_bytes()
            path.write_bytes(content + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))


def read(folder: Path, kind: str, count: int) -> Iterator[Sample]:
    """Rows of about the paper's length."""
    for number in range(count):
        media: tuple[MediaRef, ...] = ()
        if kind == "image":
            media = (MediaRef("image", folder / f"{number}.jpg"),)
        elif kind == "video":
            media = (MediaRef("video", folder / f"{number}.mp4"), MediaRef("audio", folder / f"{number}.mp4"))
        turns = (Turn("user", "What is happening here? " * 3, media), Turn("assistant", "Someone is cooking. " * 3))
        yield Sample(turns, f"{kind}/{number}", kind)


class Bytes:
    """A tokenizer that makes an id of every byte."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 256, 257, 258, 259
    tokens = ("<image>", "</image>", "<video>", "</video>", "<audio>", "</audio>")

    def convert_tokens_to_ids(self, token: str, /) -> int:
        return 260 + self.tokens.index(token)

    def convert_ids_to_tokens(self, ids: int, /) -> str:
        return ("<s>", "</s>", "<pad>", "<unk>", *self.tokens)[ids - 256]

    def __call__(self, text: str, /, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def specs() -> dict[str, MediaSpec]:
    """Of the paper's model."""
    clip = ClipTransform(224)
    return {
        "image": MediaSpec("image", clip, 5, (3, 224, 224)),
        "video": MediaSpec("video", clip, 39, (6, 3, 224, 224), frames=6),
        "audio": MediaSpec("audio", LogMel(80, 3000), 6, (80, 3000)),
    }


def milliseconds(folder: Path, kind: str, each: int, cache: Path | None) -> float:
    """CPU time of this process for a medium."""
    prepared = Prepared(specs(), disk=None if cache is None else DiskCache(cache, 2**36))
    refs = [ref for row in read(folder, "image" if kind == "image" else "video", each) for ref in row.turns[0].media]
    start = time.process_time()
    for ref in refs:
        if ref.kind == kind:
            prepared.load(kind, ref)
    return (time.process_time() - start) / each * 1e3


def rows_per_second(folder: Path, each: int, workers: int, cache: Path | None) -> float:
    """Of one pass through everything, behind the start of the workers."""
    sources = {kind: Source(partial(read, folder, kind, each)) for kind in ("text", "image", "video")}
    data = MacawDataModule(sources, None, partial(Preprocessor, cache_dir=cache), 1, workers)
    data.attach(Bytes(), specs())
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    start = time.perf_counter()
    rows = sum(len(batch.uids) for batch in batches)
    return rows / (time.perf_counter() - start)


def mix(given: SimpleNamespace) -> None:
    """Print the tables of the paper's mix."""
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        write_media(folder, given.each, given.seconds)
        sizes = {kind: [p.stat().st_size for p in folder.glob(f"*.{kind}")] for kind in ("jpg", "mp4")}
        time.sleep(SETTLED_NS / 1e9)
        means = ", ".join(f"{len(all_)} {kind} of {sum(all_) / len(all_) / 1e3:.0f} KB" for kind, all_ in sizes.items())
        print(f"{means}; {given.workers} workers, {len(os.sched_getaffinity(0))} cores\n")
        print("| CPU ms per medium | no cache | cold | warm | none / warm |\n|---|---|---|---|---|")
        for kind in ("image", "video", "audio"):
            milliseconds(folder, kind, 1, None)  # imports
            none, cold, warm = (milliseconds(folder, kind, given.each, where) for where in (None, cache, cache))
            print(f"| {kind} | {none:.1f} | {cold:.1f} | {warm:.1f} | {none / warm:.0f} |", flush=True)
        held = [path.stat().st_size for path in cache.rglob("*") if path.is_file()]
        print(f"\n{len(held)} entries of {sum(held) / 1e6:.0f} MB\n")
        print("| rows per second | no cache | cold | warm | warm / none |\n|---|---|---|---|---|")
        for number in range(given.rounds):
            shutil.rmtree(cache)
            measure = partial(rows_per_second, folder, given.each, given.workers)
            none, cold, warm = measure(None), measure(cache), measure(cache)
            print(f"| round {number + 1} | {none:.2f} | {cold:.2f} | {warm:.2f} | {warm / none:.0f} |", flush=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=60, help="pictures, videos and texts")
    parser.add_argument("--seconds", type=int, default=30, help="of a video")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given: Any = parser.parse_args()
    torch.set_num_threads(1)
    mix(given)


if __name__ == "__main__":
    main()
