"""What is in a picture, a clip or a sound of the demo world, drawn from a seeded random generator."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
RGB = tuple[int, int, int]
SoundCard = tuple[str, str | None, int]
"""Kind, pitch and number of beeps of a sound."""

COLOURS: dict[str, RGB] = {
    "red": (225, 25, 25),
    "green": (20, 165, 45),
    "blue": (30, 50, 235),
    "yellow": (245, 215, 0),
    "pink": (240, 60, 220),
    "cyan": (0, 205, 225),
}
BACKGROUNDS: dict[str, RGB] = {"black": (12, 12, 12), "grey": (128, 128, 128), "white": (244, 244, 244)}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = {"top left": (16, 16), "top right": (48, 16), "bottom left": (16, 48), "bottom right": (48, 48)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"fast": 36.0, "slow": 11.0}  # pixels travelled over the whole clip, each ±0.5: the ratio stays >= 3
KINDS = ("tone", "noise", "silence")
PITCHES = {"high": 1200.0, "low": 300.0}  # Hz
COUNTS = (1, 2, 3, 4)

SIDE = 64  # pixels, width and height of pictures and frames
FPS = 10
FRAMES = 24
SECONDS = FRAMES / FPS
MARGIN = 6.0  # pixels from the border to the nearest centre of a moving thing, whose radius is 13


@dataclass(frozen=True)
class Thing:
    """A coloured shape at one place of a picture; `x`, `y`, `radius` in pixels, `tint` the colour as painted."""

    colour: str
    shape: str
    place: str
    x: float
    y: float
    radius: float
    tint: RGB


@dataclass(frozen=True)
class Picture:
    """One to four things, at most one per quadrant and none of the same colour, on a plain background."""

    background: str
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Sound:
    """`count` beeps of one pitch, bursts of noise, or silence (count 0, a faint hiss); `seed` fixes rhythm and gain."""

    kind: str
    pitch: str | None
    count: int
    seed: int


@dataclass(frozen=True)
class Clip:
    """One thing that moves straight on and may change its colour at frame `turn`; `sound` is None without a track.

    The path keeps within the picture, so that a fast thing cannot start anywhere: the best guess of the direction from
    the first or last frame alone is right in 51 % of the clips, from a middle one in 36 % (25 % is chance).
    """

    background: str
    shape: str
    first: str
    last: str
    direction: str
    speed: str
    start: tuple[float, float]
    step: tuple[float, float]  # pixels per frame
    radius: float
    tints: tuple[RGB, RGB]
    turn: int
    sound: Sound | None


def deck(rng: random.Random, values: Sequence[T], n: int) -> list[T]:
    """`n` values in random order, each as often as any other, give or take one."""
    cards = list(values) * (n // len(values)) + rng.sample(list(values), n % len(values))
    rng.shuffle(cards)
    return cards


def tint(rng: random.Random, colour: str) -> RGB:
    """The colour's RGB value, a little off in each channel."""
    red, green, blue = (min(255, max(0, value + rng.randint(-10, 10))) for value in COLOURS[colour])
    return red, green, blue


def pictures(rng: random.Random, n: int) -> list[Picture]:
    """`n` pictures, half of them of one thing; backgrounds and the other numbers are balanced, the rest is uniform.

    What a shape or a colour looks like is learned where only one thing can be meant, and nowhere else.
    """
    combinations = [(count, background) for count in (1, 1, *COUNTS) for background in BACKGROUNDS]
    return [_picture(rng, count, background) for count, background in deck(rng, combinations, n)]


def _picture(rng: random.Random, count: int, background: str) -> Picture:
    things = []
    for place, colour in zip(rng.sample(list(PLACES), count), rng.sample(list(COLOURS), count), strict=True):
        x, y = (centre + rng.uniform(-2, 2) for centre in PLACES[place])
        shape = rng.choice(SHAPES)
        things.append(Thing(colour, shape, place, x, y, rng.uniform(11, 13), tint(rng, colour)))
    return Picture(background, tuple(things))


def sounds(rng: random.Random, n: int) -> list[Sound]:
    """`n` sounds; 45 % tones, 30 % noise, 25 % silence, numbers and pitches balanced."""
    cards: list[SoundCard] = [("tone", pitch, count) for pitch in PITCHES for count in COUNTS for _ in range(9)]
    cards += [("noise", None, count) for count in COUNTS for _ in range(12)]
    cards += [("silence", None, 0)] * 40
    return [Sound(kind, pitch, count, rng.getrandbits(63)) for kind, pitch, count in deck(rng, cards, n)]


def clips(rng: random.Random, n: int) -> list[Clip]:
    """`n` clips, a tenth of them without a sound track; number of beeps and direction are balanced jointly."""
    cards = [sound_card for sound_card in _sound_cards() for _ in DIRECTIONS]
    ways = list(DIRECTIONS) * (len(cards) // len(DIRECTIONS))
    plan = deck(rng, list(zip(cards, ways, strict=True)), n)
    firsts, shapes = deck(rng, list(COLOURS), n), deck(rng, SHAPES, n)
    speeds, backgrounds = deck(rng, list(SPEEDS), n), deck(rng, list(BACKGROUNDS), n)
    found = []
    for index, (card, direction) in enumerate(plan):
        sound = None if card is None else Sound(*card, seed=rng.getrandbits(63))
        found.append(
            _clip(rng, backgrounds[index], shapes[index], firsts[index], direction, speeds[index], sound),
        )
    return found


def _sound_cards() -> list[SoundCard | None]:
    tones: list[SoundCard] = [("tone", pitch, count) for pitch in PITCHES for count in COUNTS for _ in range(2)]
    noises: list[SoundCard] = [("noise", None, count) for count in COUNTS for _ in range(3)]
    return [*tones, *noises, *[("silence", None, 0)] * 10, *[None] * 4]


def _clip(
    rng: random.Random, background: str, shape: str, first: str, direction: str, speed: str, sound: Sound | None
) -> Clip:
    last = rng.choice([colour for colour in COLOURS if colour != first]) if rng.random() < 0.6 else first
    dx, dy = DIRECTIONS[direction]
    way = SPEEDS[speed] + rng.uniform(-0.5, 0.5)
    start = (
        rng.uniform(MARGIN + max(0.0, -dx * way), SIDE - MARGIN - max(0.0, dx * way)),
        rng.uniform(MARGIN + max(0.0, -dy * way), SIDE - MARGIN - max(0.0, dy * way)),
    )
    step = (dx * way / (FRAMES - 1), dy * way / (FRAMES - 1))
    before = tint(rng, first)
    after = before if last == first else tint(rng, last)
    turn = rng.randint(10, 13)
    return Clip(background, shape, first, last, direction, speed, start, step, 13.0, (before, after), turn, sound)
