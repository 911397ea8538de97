"""Descriptions of the demo world's media; the captions of one medium together state every fact asked for."""

import random

from macaw_lit.data.demo.questions import number_of, there_are
from macaw_lit.data.demo.scenes import Clip, Picture, Sound


def picture_captions(rng: random.Random, picture: Picture) -> list[str]:
    """Five captions; the first and second tell everything, the others less."""
    things = rng.sample(picture.things, len(picture.things))
    named = _listing([f"a {thing.colour} {thing.shape}" for thing in things])
    placed = _listing([f"a {thing.colour} {thing.shape} at the {thing.place}" for thing in things])
    ground, many = f"a {picture.background} background", number_of(len(things), "object")
    one = rng.choice(things)
    return [
        f"{many} on {ground}: {placed}.".capitalize(),
        f"{placed}; {many} on {ground}.".capitalize(),
        f"{there_are(len(things), 'object')}: {named}.",
        f"{named} on {ground}.".capitalize(),
        f"A {one.colour} {one.shape} at the {one.place} of a {picture.background} picture.",
    ]


def sound_caption(sound: Sound | None) -> str:
    """`three high beeps`, `two bursts of noise`, `no sound`."""
    if sound is None or not sound.count:
        return "no sound"
    if sound.kind == "noise":
        return number_of(sound.count, "burst") + " of noise"
    return number_of(sound.count, f"{sound.pitch} beep")


def sound_captions(sound: Sound) -> list[str]:
    """Three captions, each of which tells everything."""
    brief = sound_caption(sound)
    if not sound.count:
        return ["No sound.", "Silence.", "One hears silence, no sound at all."]
    kind = f"a {sound.pitch} tone" if sound.pitch else "noise"
    heard = f"{there_are(sound.count, 'sound')}: {kind}."
    return [f"{brief.capitalize()}.", heard, f"One hears {kind}, {number_of(sound.count, 'sound')} in all."]


def clip_caption(clip: Clip) -> str:
    """`a red circle that turns blue moves fast to the left on a black background`."""
    colours = f"that turns {clip.last}" if clip.first != clip.last else f"that stays {clip.last}"
    return f"a {clip.first} {clip.shape} {colours} moves {_manner(clip)} on a {clip.background} background"


def clip_captions(clip: Clip) -> list[str]:
    """Three captions; the first tells everything that is seen, the last what is heard."""
    first = f"The object is {clip.first} at the start and {clip.last} at the end, and moves {clip.direction}."
    return [f"{clip_caption(clip).capitalize()}.", first, f"{sound_caption(clip.sound).capitalize()}."]


def _manner(clip: Clip) -> str:
    way = clip.direction if clip.direction in ("up", "down") else f"to the {clip.direction}"
    return f"{'fast' if clip.speed == 'fast' else 'slowly'} {way}"


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
