"""The demo world's questions with their answers, and the selection that leaves every answer equally frequent."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from macaw_lit.data.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    DIRECTIONS,
    KINDS,
    PITCHES,
    PLACES,
    SHAPES,
    SPEEDS,
    Clip,
    Picture,
    Sound,
)

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class QuestionType:
    """Which media a question needs, whether a demo run must pass it, the rate of a best blind guess, its phrasings."""

    media: tuple[str, ...]
    gating: bool
    chance: float
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One question with its only right response; `answer` is the deciding fact, `cell` what must be balanced."""

    type: str
    text: str
    response: str
    answer: str
    cell: str


def _kind(media: str, gating: bool, chance: float, *phrasings: str) -> QuestionType:
    return QuestionType(tuple(media.split()), gating, round(chance, 4), phrasings)


TYPES: dict[str, QuestionType] = {
    "image.color": _kind(
        "image", True, 1 / len(COLOURS), "What colour is the object?", "Which colour does the object have?"
    ),
    "image.shape": _kind(
        "image", True, 1 / len(SHAPES), "What shape is the object?", "Which shape does the object have?"
    ),
    "image.color_of": _kind(
        "image",
        False,
        1 / len(COLOURS),
        "What colour is the {}?",
        "Which colour does the {} have?",
        "Name the colour of the {}.",
    ),
    "image.shape_of": _kind(
        "image",
        False,
        1 / len(SHAPES),
        "What shape is the {} object?",
        "Which shape does the {} object have?",
        "Name the shape of the {} object.",
    ),
    "image.count": _kind(
        "image",
        True,
        1 / len(COUNTS),
        "How many objects are in the picture?",
        "How many objects do you see?",
        "Count the objects.",
    ),
    "image.background": _kind(
        "image",
        True,
        1 / len(BACKGROUNDS),
        "What colour is the background?",
        "Which background does the picture have?",
    ),
    "image.position": _kind(
        "image", False, 1 / len(PLACES), "Where is the {} object?", "In which corner is the {} object?"
    ),
    "video.first": _kind(
        "video",
        True,
        1 / len(COLOURS),
        "What colour is the object at the start?",
        "Which colour does the object have first?",
    ),
    "video.last": _kind(
        "video",
        True,
        1 / len(COLOURS),
        "What colour is the object at the end?",
        "Which colour does the object have last?",
    ),
    "video.background": _kind(
        "video",
        True,
        1 / len(BACKGROUNDS),
        "What colour is the background?",
        "Which background does the video have?",
    ),
    "video.direction": _kind(
        "video",
        False,
        1 / len(DIRECTIONS),
        "Which way does the object move?",
        "In which direction does the object go?",
        "Where does the object move?",
    ),
    "video.speed": _kind(
        "video", False, 1 / len(SPEEDS), "How fast does the object move?", "Is the object fast or slow?"
    ),
    "video.change": _kind(
        "video", False, 1 / 2, "Does the object change its colour?", "Does the colour of the object change?"
    ),
    "video.shape": _kind("video", False, 1 / len(SHAPES), "What shape is the moving object?", "Which shape moves?"),
    "audio.kind": _kind("audio", True, 1 / len(KINDS), "What kind of sound is it?", "What do you hear?"),
    "audio.pitch": _kind(
        "audio", True, 1 / len(PITCHES), "Is the pitch high or low?", "What pitch does the sound have?"
    ),
    "audio.count": _kind(
        "audio",
        True,
        1 / len(COUNTS),
        "How many sounds do you hear?",
        "How many sounds are there?",
        "Count the sounds.",
    ),
    "av.both": _kind(
        "video audio",
        True,
        max(1 / len(KINDS), 1 / len(BACKGROUNDS)),
        "What do you hear and what colour is the background?",
        "Name the sound and the colour of the background.",
    ),
    "av.motion": _kind(
        "video audio",
        False,
        max(1 / len(COUNTS), 1 / len(DIRECTIONS)),
        "How many sounds are there and which way does the object move?",
        "Count the sounds and say where the object moves.",
    ),
    "av.agree": _kind(
        "video audio",
        False,
        1 / 2,
        "High goes with up and low with down: do sound and motion agree?",
        "Do sound and motion agree, high with up and low with down?",
    ),
    "text.last": _kind("", True, 0.0, "What is the last word?", "Give the last word."),
    "text.pick": _kind("", True, 1 / len(COLOURS), "Which word is a colour?", "Pick the colour word."),
    "text.copy": _kind("", False, 0.0, "Copy the words.", "Repeat the words."),
    "text.reverse": _kind("", False, 0.0, "Reverse the order of the words.", "Say the words backwards."),
    "text.add": _kind("", False, 1 / 13, "Add the numbers.", "What is the sum?"),
}


def ask(rng: random.Random, kind: str, answer: str, response: str, about: str = "", cell: str = "") -> Question:
    """One question of the type in one of its phrasings."""
    return Question(kind, rng.choice(TYPES[kind].phrasings).format(about), response, answer, cell or answer)


def number_of(count: int, noun: str) -> str:
    """`three objects`, `one object`."""
    return f"{NUMBERS[count]} {noun}{'' if count == 1 else 's'}"


def there_are(count: int, noun: str) -> str:
    """`There are three objects`."""
    return f"There {'is' if count == 1 else 'are'} {number_of(count, noun)}"


def picture_questions(rng: random.Random, picture: Picture) -> list[Question]:
    """All that may be asked about a picture: nothing ambiguous, no thing named that is not unique."""
    found = [
        ask(rng, "image.count", NUMBERS[len(picture.things)], there_are(len(picture.things), "object") + "."),
        ask(rng, "image.background", picture.background, f"The background is {picture.background}."),
    ]
    if len(picture.things) == 1:
        (thing,) = picture.things
        found.append(ask(rng, "image.color", thing.colour, f"The object is {thing.colour}."))
        found.append(ask(rng, "image.shape", thing.shape, f"The object is a {thing.shape}."))
    shapes = Counter(thing.shape for thing in picture.things)
    for thing in picture.things:
        about = f"{thing.colour} object"
        found.append(ask(rng, "image.shape_of", thing.shape, f"The {about} is a {thing.shape}.", thing.colour))
        found.append(ask(rng, "image.position", thing.place, f"The {about} is at the {thing.place}.", thing.colour))
        if shapes[thing.shape] == 1:
            found.append(ask(rng, "image.color_of", thing.colour, f"The {thing.shape} is {thing.colour}.", thing.shape))
    return found


def heard(sound: Sound) -> str:
    """`a tone`, `noise`, `silence`."""
    return f"a {sound.kind}" if sound.kind == "tone" else sound.kind


def sound_questions(rng: random.Random, sound: Sound) -> list[Question]:
    """All that may be asked about a sound; silence has neither pitch nor number, noise no pitch."""
    found = [ask(rng, "audio.kind", sound.kind, f"You hear {heard(sound)}.")]
    if sound.count:
        found.append(ask(rng, "audio.count", NUMBERS[sound.count], there_are(sound.count, "sound") + "."))
    if sound.pitch:
        found.append(ask(rng, "audio.pitch", sound.pitch, f"The pitch is {sound.pitch}."))
    return found


def clip_questions(rng: random.Random, clip: Clip) -> list[Question]:
    """All that may be asked about a clip, its sound track and both together."""
    changes = clip.first != clip.last
    manner = "fast" if clip.speed == "fast" else "slowly"
    found = [
        ask(rng, "video.first", clip.first, f"It starts {clip.first}."),
        ask(rng, "video.last", clip.last, f"It ends {clip.last}."),
        ask(rng, "video.background", clip.background, f"The background is {clip.background}."),
        ask(rng, "video.direction", clip.direction, f"It moves {clip.direction}."),
        ask(rng, "video.speed", clip.speed, f"It moves {manner}."),
        ask(rng, "video.change", "yes" if changes else "no", "Yes, it changes." if changes else "No, it stays."),
        ask(rng, "video.shape", clip.shape, f"It is a {clip.shape}."),
    ]
    if clip.sound is None:
        return found
    found += sound_questions(rng, clip.sound)
    both = f"You hear {heard(clip.sound)} and the background is {clip.background}."
    found.append(ask(rng, "av.both", f"{clip.sound.kind} {clip.background}", both))
    if clip.sound.count:
        both = f"{there_are(clip.sound.count, 'sound')} and it moves {clip.direction}."
        found.append(ask(rng, "av.motion", f"{NUMBERS[clip.sound.count]} {clip.direction}", both))
    if clip.sound.pitch and clip.direction in ("up", "down"):
        agree = (clip.sound.pitch == "high") == (clip.direction == "up")
        response = "Yes, they agree." if agree else "No, they differ."
        cell = f"{clip.sound.pitch} {clip.direction}"
        found.append(ask(rng, "av.agree", "yes" if agree else "no", response, cell=cell))
    return found


def select(rng: random.Random, asked: Iterable[tuple[str, Sequence[Question]]]) -> list[tuple[str, Question]]:
    """Picks one question of each type per medium, then drops some: every answer is equally frequent.

    Args:
        asked: (medium's name, all that may be asked about it).
    """
    rows: dict[str, dict[str, list[tuple[int, str, Question]]]] = {}
    for order, (name, questions) in enumerate(asked):
        for kind in dict.fromkeys(question.type for question in questions):
            cells = rows.setdefault(kind, {})
            candidates = [question for question in questions if question.type == kind]
            rng.shuffle(candidates)
            question = min(candidates, key=lambda item: len(cells.get(item.cell, ())))
            cells.setdefault(question.cell, []).append((order, name, question))
    kept = []
    for cells in rows.values():
        quota = min(len(cell) for cell in cells.values())
        kept += [row for cell in cells.values() for row in rng.sample(cell, quota)]
    kept.sort(key=lambda row: row[0])
    return [(name, question) for _, name, question in kept]
