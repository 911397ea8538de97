"""Writers for the demo world's annotations in the datasets' own formats: COCO, Macaw, Charades, AVSD."""

import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from macaw_lit.data.demo.captions import clip_caption, clip_captions, sound_caption
from macaw_lit.data.demo.questions import Question, clip_questions
from macaw_lit.data.demo.scenes import DIRECTIONS, SECONDS, SIDE, Clip

CHARADES_COLUMNS = (
    *("id", "subject", "scene", "quality", "relevance", "verified", "script"),
    *("objects", "descriptions", "actions", "length"),
)


def write_json(path: Path, content: Any) -> None:
    """Writes UTF-8 JSON; equal content gives equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=None, separators=(",", ": ")) + "\n", encoding="utf-8")


def write_macaw(path: Path, rows: Iterable[tuple[str, Question]]) -> None:
    """Writes (medium's id, question) rows in the layout of Macaw's released instruction data."""
    data = [
        {"id": name, "instruction": row.text, "response": row.response, "type": row.type, "answer": row.answer}
        for name, row in rows
    ]
    write_json(path, {"data": data})


def write_coco(path: Path, captions: Mapping[str, Sequence[str]], first_id: int) -> None:
    """Writes file name → captions as a COCO captions file, numbering the media from `first_id`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, texts) in enumerate(captions.items(), start=first_id):
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE, "license": 1})
        for text in texts:
            annotations.append({"id": 10 * first_id + len(annotations), "image_id": number, "caption": text})
    info = {"description": "macaw-lit demo world", "version": "1.0"}
    licenses = [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}]
    write_json(path, {"info": info, "licenses": licenses, "images": images, "annotations": annotations})


def write_charades(path: Path, clips: Mapping[str, Clip]) -> None:
    """Writes id → clip as a Charades CSV with header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, CHARADES_COLUMNS, lineterminator="\n")
        table.writeheader()
        for name, clip in clips.items():
            descriptions = clip_captions(clip)
            action = f"c{list(DIRECTIONS).index(clip.direction):03d} 0.00 {SECONDS:.2f}"
            row = [name, "DEMO", "Studio", 7, 7, "Yes", descriptions[0], clip.shape, ";".join(descriptions), action]
            table.writerow(dict(zip(CHARADES_COLUMNS, [*row, f"{SECONDS:.2f}"], strict=True)))


def write_avsd(path: Path, split: str, clips: Mapping[str, Clip], rng: random.Random, turns: int = 5) -> None:
    """Writes id → clip as a DSTC7 file: the summary tells the sound, the caption the picture, and a dialogue."""
    dialogs = []
    for name, clip in clips.items():
        questions = clip_questions(rng, clip)
        dialog = [{"question": row.text, "answer": row.response} for row in rng.sample(questions, turns)]
        summary, caption = f"{sound_caption(clip.sound)}.", f"{clip_caption(clip)}."
        dialogs.append({"image_id": name, "summary": summary, "caption": caption, "dialog": dialog})
    write_json(path, {"type": split, "version": "0.1", "dialogs": dialogs})
