"""The template backend: answers without a server, from the captions alone; of the demo world it asks all there is."""

import json
import random
import re
from collections.abc import Sequence

from macaw_lit.data.demo.questions import NUMBERS, Question, clip_questions, picture_questions, sound_questions
from macaw_lit.data.demo.scenes import COLOURS, PLACES, Clip, Picture, Sound, Thing
from macaw_lit.generation.backend import Backend
from macaw_lit.generation.parse import Completion
from macaw_lit.generation.templates import Request

PLAIN = ("Describe the {}.", "What does the {} tell?", "Give the gist of the {}.", "Sum up the {} in a sentence.")
"""What is asked about captions that are not the demo world's; a caption is the answer."""

PICTURE = re.compile(
    r"(?:(?P<count>\w+) objects? on a (?P<ground>\w+) background: (?P<things>.+)|"
    r"(?P<things2>.+); \w+ objects? on a (?P<ground2>\w+) background)\.",
    re.IGNORECASE,
)
THING = re.compile(rf"a (\w+) (\w+) at the ({'|'.join(PLACES)})", re.IGNORECASE)
CLIP = re.compile(
    r"a (\w+) (\w+) that (?:turns|stays) (\w+) moves (fast|slowly) (?:to the )?(\w+) on a (\w+) background\.?",
    re.IGNORECASE,
)
SOUND = re.compile(r"(?:(\w+) (?:(high|low) beeps?|bursts? of noise)|(no sound))\.?", re.IGNORECASE)


class TemplateBackend(Backend):
    """A grammar in a chat model's place: the same captions always bring the same pairs, as many as they tell of.

    In the demo world the captions are read back into a scene, about which its questions are asked (`data.demo`).
    """

    exact = False

    async def complete(self, request: Request) -> Completion:
        content = request.messages[-1]["content"]
        captions = json.loads(content).get("captions", [])
        rng, template = random.Random(content), request.template
        asked = questions(rng, captions) or _plain(captions)
        asked = rng.sample(asked, min(len(asked), template.pairs * template.turns))
        if template.form == "lines":
            text = "\n".join(f"Q: {each.text}\nA: {each.response}" for each in asked)
        else:
            pairs = [_pair(each, template.answers) for each in asked]
            groups = [pairs[start :: template.pairs] for start in range(template.pairs)]
            dialogues = [{"turns": group} for group in groups if len(group) > 1]
            text = json.dumps({"dialogues": dialogues} if template.turns > 1 else {"pairs": pairs})
        return Completion(text, model="template", counted=True)


def questions(rng: random.Random, captions: Sequence[str]) -> list[Question]:
    """All that may be asked about a demo medium by its captions; nothing for others."""
    sound = next((_sound(found) for text in captions if (found := SOUND.fullmatch(text))), None)
    for text in captions:
        if found := CLIP.fullmatch(text):
            return clip_questions(rng, _clip(found, sound))
        if found := PICTURE.fullmatch(text):
            return picture_questions(rng, _picture(found))
    return sound_questions(rng, sound or Sound("silence", None, 0, 0)) if any(map(SOUND.fullmatch, captions)) else []


def _picture(found: re.Match[str]) -> Picture:
    """The scene of a caption; where exactly things are, and how they are painted, no question needs."""
    listing = found["things"] or found["things2"]
    things = [
        Thing(colour.lower(), shape, place, 0.0, 0.0, 12.0, COLOURS[colour.lower()])
        for colour, shape, place in THING.findall(listing)
    ]
    return Picture(found["ground"] or found["ground2"], tuple(things))


def _clip(found: re.Match[str], sound: Sound | None) -> Clip:
    first, shape, last, manner, direction, ground = (part.lower() for part in found.groups())
    speed = "fast" if manner == "fast" else "slow"
    tints = COLOURS[first], COLOURS[last]
    return Clip(ground, shape, first, last, direction, speed, (0.0, 0.0), (0.0, 0.0), 13.0, tints, 12, sound)


def _sound(found: re.Match[str]) -> Sound | None:
    """A sound by its caption; a clip with "no sound" may have a silent track or none, so that nothing is asked."""
    if found[3]:
        return None
    count = next(number for number, word in NUMBERS.items() if word == found[1].lower())
    return Sound("tone" if found[2] else "noise", found[2], count, 0)


def _plain(captions: Sequence[str]) -> list[Question]:
    return [
        Question("describe", PLAIN[place % len(PLAIN)].format("scene"), text, text, text)
        for place, text in enumerate(captions)
    ]


def _pair(asked: Question, answers: bool) -> dict[str, str]:
    pair = {"instruction": asked.text, "type": asked.type}
    return pair | {"response": asked.response} if answers else pair
