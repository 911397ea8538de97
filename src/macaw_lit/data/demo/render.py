"""Renders the embedded demo world: `python -m macaw_lit.data.demo.render [root=data/demo] [seed=0] [images=…] …`."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.progress import Progress

from macaw_lit.data.demo import files, scenes, texts
from macaw_lit.data.demo.arguments import read_arguments, run
from macaw_lit.data.demo.captions import picture_captions, sound_captions
from macaw_lit.data.demo.clip import write_clip
from macaw_lit.data.demo.draw import write_picture
from macaw_lit.data.demo.questions import TYPES, clip_questions, picture_questions, select, sound_questions
from macaw_lit.data.demo.sound import write_sound
from macaw_lit.data.demo.tokenizer import train_tokenizer
from macaw_lit.errors import ConfigError

VERSION = 7
"""Raised whenever the same settings give other files, so that an old world is not taken for a new one."""

Job = tuple[Callable[[Path, Any], None], Path, Any]


@dataclass(frozen=True)
class Sizes:
    """How many media and text rows to train on, and how many of each medium and text type to hold out."""

    images: int = 4000
    videos: int = 2000
    sounds: int = 900
    texts: int = 6000
    heldout: int = 504


def render(root: Path, seed: int = 0, sizes: Sizes | None = None, workers: int = 2) -> bool:
    """Writes the world under `root`, unless it is there already with the same settings: then False, at once.

    Everything is written beside `root` first and moved into place when complete, so that a render that was killed is
    never taken for a world.

    Raises:
        ConfigError: a size below 1, or `root` holds something that is no demo world.
    """
    root, sizes = root.resolve(), sizes or Sizes()
    for name, value in [*asdict(sizes).items(), ("workers", workers)]:
        if value < 1:
            raise ConfigError(f"{name}={value}: expected a whole number of at least 1; leave it out for the default")
    settings = {"version": VERSION, "seed": seed, "sizes": asdict(sizes)}
    if not _wanted(root, settings):
        return False
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with Progress() as progress:
        jobs = list(_plan(partial, seed, sizes))
        _run(jobs, workers, progress)
        task = progress.add_task("tokenizer", total=1)
        train_tokenizer(_training_texts(partial), partial / "tokenizer")
        progress.advance(task)
    files.write_json(partial / "world.json", settings)
    if root.exists():
        shutil.rmtree(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(root)
    return True


def _wanted(root: Path, settings: dict[str, Any]) -> bool:
    """Whether `root` must be rendered; raises rather than overwrite what is no demo world."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return True
    marker = root / "world.json"
    if not marker.is_file():
        raise ConfigError(f"root={root} exists and is no demo world (no world.json); expected an empty or new folder")
    try:
        return bool(json.loads(marker.read_text(encoding="utf-8")) != settings)
    except ValueError as error:
        raise ConfigError(f"{marker} is not JSON ({error}); delete {root} to render it anew") from error


def _plan(root: Path, seed: int, sizes: Sizes) -> Iterator[Job]:
    """Writes all annotations and yields a job for each media file."""
    files.write_json(
        root / "question_types.json",
        {name: {"media": kind.media, "gating": kind.gating, "chance": kind.chance} for name, kind in TYPES.items()},
    )
    counts = {"train": 1, "val": sizes.heldout}
    first = 1
    for split, count in {"train": sizes.images, "val": sizes.heldout}.items():
        yield from _pictures(root / "coco", split, count, first, random.Random(f"{seed}/images/{split}"))
        first += count
    names = _charades_ids(random.Random(f"{seed}/ids"), sizes.videos + sizes.heldout)
    splits = {"train": names[: sizes.videos], "val": names[sizes.videos :]}
    for split, own in splits.items():
        yield from _clips(root, split, own, random.Random(f"{seed}/videos/{split}"))
    first = 1
    for split, count in {"train": sizes.sounds, "val": sizes.heldout}.items():
        yield from _sounds(root / "audio", split, count, first, random.Random(f"{seed}/sounds/{split}"))
        first += count
    rows = texts.text_rows(random.Random(f"{seed}/texts"), sizes.texts, sizes.heldout)
    for split, own_rows in zip(counts, rows, strict=True):
        files.write_json(root / "alpaca" / f"alpaca_data_{split}.json", own_rows)


def _pictures(root: Path, split: str, count: int, first: int, rng: random.Random) -> Iterator[Job]:
    pictures = {f"{first + index:012d}.jpg": picture for index, picture in enumerate(scenes.pictures(rng, count))}
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    captions = {name: picture_captions(rng, picture) for name, picture in pictures.items()}
    files.write_coco(root / "annotations" / f"captions_{split}2017.json", captions, first)
    asked = [(name, picture_questions(rng, picture)) for name, picture in pictures.items()]
    files.write_macaw(root / f"generated_examples_coco_{split}.json", select(rng, asked))
    yield from ((write_picture, folder / name, picture) for name, picture in pictures.items())


def _clips(root: Path, split: str, names: Sequence[str], rng: random.Random) -> Iterator[Job]:
    clips = dict(zip(names, scenes.clips(rng, len(names)), strict=True))
    folder = root / "charades" / "Charades_v1_480"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_charades(root / "charades" / f"Charades_v1_{'train' if split == 'train' else 'test'}.csv", clips)
    avsd_split = "train" if split == "train" else "valid"
    files.write_avsd(root / "avsd" / f"{avsd_split}_set4DSTC7-AVSD.json", avsd_split, clips, rng)
    asked = [(name, clip_questions(rng, clip)) for name, clip in clips.items()]
    files.write_macaw(root / "avsd" / f"generated_examples_avsd_{split}.json", select(rng, asked))
    yield from ((write_clip, folder / f"{name}.mp4", clip) for name, clip in clips.items())


def _sounds(root: Path, split: str, count: int, first: int, rng: random.Random) -> Iterator[Job]:
    sounds = {f"A{first + index:06d}.wav": sound for index, sound in enumerate(scenes.sounds(rng, count))}
    (root / split).mkdir(parents=True)
    captions = {name: sound_captions(sound) for name, sound in sounds.items()}
    files.write_coco(root / f"captions_{split}.json", captions, first)
    asked = [(name, sound_questions(rng, sound)) for name, sound in sounds.items()]
    files.write_macaw(root / f"generated_examples_audio_{split}.json", select(rng, asked))
    yield from ((write_sound, root / split / name, sound) for name, sound in sounds.items())


def _charades_ids(rng: random.Random, count: int) -> list[str]:
    """Distinct ids of five characters such as AB12C."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    found = []
    for number in rng.sample(range(26**3 * 100), count):
        rest, digits = divmod(number, 100)
        found.append(f"{letters[rest // 676]}{letters[rest // 26 % 26]}{digits:02d}{letters[rest % 26]}")
    return found


def _run(jobs: Sequence[Job], workers: int, progress: Progress) -> None:
    """Writes the media files, in this process or in `workers` others."""
    task = progress.add_task("media", total=len(jobs))
    if workers == 1:
        for job in progress.track(jobs, task_id=task):
            _write([job])
        return
    # spawn, not fork: the caller may hold threads (torch, FFmpeg) that do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        chunks = [jobs[start : start + 50] for start in range(0, len(jobs), 50)]
        for future in as_completed([pool.submit(_write, chunk) for chunk in chunks]):
            progress.advance(task, future.result())


def _write(jobs: Sequence[Job]) -> int:
    for write, path, scene in jobs:
        write(path, scene)
    return len(jobs)


def _training_texts(root: Path) -> Iterator[str]:
    """Every text of the training annotations, as often as it occurs there."""
    for path in sorted(root.glob("**/generated_examples_*_train.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["data"]:
            yield f"{row['instruction']}\n\n{row['response']}"
    for path in sorted(root.glob("**/captions_train*.json")):
        yield from (row["caption"] for row in json.loads(path.read_text(encoding="utf-8"))["annotations"])
    for row in json.loads((root / "alpaca" / "alpaca_data_train.json").read_text(encoding="utf-8")):
        yield f"{row['instruction']}\n{row['input']}\n{row['output']}"
    for dialog in json.loads((root / "avsd" / "train_set4DSTC7-AVSD.json").read_text(encoding="utf-8"))["dialogs"]:
        yield f"{dialog['summary']}\n{dialog['caption']}"


def main(arguments: list[str]) -> None:
    """Renders by `key=value` arguments."""
    options: dict[str, Any] = read_arguments(
        arguments, {"root": Path("data/demo"), "seed": 0, "workers": 2, **asdict(Sizes())}
    )
    root, seed, workers = options.pop("root"), options.pop("seed"), options.pop("workers")
    rendered = render(root, seed, Sizes(**options), workers)
    print(f"{root}: {'rendered' if rendered else 'is complete with these settings, nothing to do'}")


if __name__ == "__main__":
    run(main)
