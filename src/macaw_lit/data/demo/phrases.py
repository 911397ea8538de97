"""The phrases of captions as targets: which words and pairs of words are said of a medium."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

RARE = 15  # a phrase of fewer training media is not asked for
_FILLERS = {
    "a", "an", "the", "at", "of", "on", "and", "in", "is", "there", "are", "that", "to", "one", "hears", "all", "it",
    "picture",
}  # fmt: skip

Captions = dict[str, list[str]]
"""Name of a medium → its captions."""


def coco_captions(path: Path) -> Captions:
    """Captions of a COCO file by file name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    captions: Captions = {}
    for annotation in content["annotations"]:
        captions.setdefault(names[annotation["image_id"]], []).append(annotation["caption"])
    return captions


def avsd_captions(path: Path, field: str) -> Captions:
    """One field of a DSTC file by video id: `caption` tells what is seen, `summary` what is heard."""
    dialogs = json.loads(path.read_text(encoding="utf-8"))["dialogs"]
    return {dialog["image_id"]: [dialog[field]] for dialog in dialogs}


def phrases_of(captions: Iterable[str]) -> set[str]:
    """Words, and pairs of words that follow each other within a clause when fillers are left out."""
    found: set[str] = set()
    for caption in captions:
        for clause in re.split(r"[,.:;]| and ", caption.lower()):
            words = [word for word in re.findall(r"[a-z]+", clause) if word not in _FILLERS]
            found.update(words)
            found.update(f"{first} {second}" for first, second in itertools.pairwise(words))
    return found


def vocabulary(captions: Mapping[str, Sequence[str]]) -> list[str]:
    """Phrases that tell media apart: said of at least `RARE` of them and not of nearly all, commonest first."""
    counts = Counter(phrase for own in captions.values() for phrase in phrases_of(own))
    # Sets come in another order in every process: equally common phrases are put in order of their letters.
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [phrase for phrase, count in ordered if RARE <= count <= 0.98 * len(captions)]


def targets(captions: Mapping[str, Sequence[str]], phrases: Sequence[str]) -> Float[Tensor, "n p"]:
    """1 where a phrase is said of a medium, 0 elsewhere; media in the order of the mapping."""
    said = [phrases_of(own) for own in captions.values()]
    return torch.tensor([[float(phrase in own) for phrase in phrases] for own in said])
