"""Held-out items drawn evenly over their answers, and the same items with a medium taken away or exchanged."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from macaw_lit.evaluation.answers import normalise
from macaw_lit.types import MediaRef, Sample


def kinds_of(sample: Sample) -> tuple[str, ...]:
    """The kinds of all media of a sample, in order, repeats kept."""
    return tuple(ref.kind for turn in sample.turns for ref in turn.media)


def gold_of(sample: Sample) -> str:
    """The gold answer that items are balanced over: `meta["answer"]`, else the response, normalised."""
    return normalise(str(sample.meta.get("answer", sample.turns[-1].text)))


def draw(samples: Sequence[Sample], n: int, rng: random.Random) -> list[Sample]:
    """At most `n` samples with each gold answer equally often while they last.

    Whole rounds over the answers are taken, so 6 answers and n = 200 give 198; all samples if there are no more than n.
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[gold_of(sample)].append(sample)
    queues = list(groups.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
    drawn: list[Sample] = []
    while queues:
        taken = [queue.pop() for queue in queues]
        if drawn and len(drawn) + len(taken) > n:
            break
        drawn += taken
        queues = [queue for queue in queues if queue]
    return drawn[:n]


def derange(paths: Sequence[frozenset[str]], golds: Sequence[str], rng: random.Random) -> list[int] | None:
    """A permutation that gives no item a donor with which it shares a path; None where there is none.

    Args:
        paths: the paths of each item's media of one kind.
        golds: the gold answer of each item.

    Apart from conflicts, the items of each gold answer get donors of all gold answers in equal shares: with k answers,
    a model that follows the medium is right in 1/k of the items, without the scatter of a free permutation. A conflict
    is solved by one swap that makes no new one. Where items either share all paths or none, such a swap exists unless
    one medium belongs to more than half of the items.
    """
    places = list(range(len(paths)))
    rng.shuffle(places)
    groups: dict[str, list[int]] = defaultdict(list)
    for place in places:
        groups[golds[place]].append(place)
    depth = {place: (rank + 0.5) / len(group) for group in groups.values() for rank, place in enumerate(group)}
    grouped = [place for group in groups.values() for place in group]
    donors = [0] * len(paths)
    for place, donor in zip(grouped, sorted(grouped, key=depth.__getitem__), strict=True):
        donors[place] = donor
    for item, own in enumerate(paths):
        if own.isdisjoint(paths[donors[item]]):
            continue
        partners = [
            other
            for other in places
            if own.isdisjoint(paths[donors[other]]) and paths[other].isdisjoint(paths[donors[item]])
        ]
        if not partners:
            return None
        alike = [other for other in partners if golds[donors[other]] == golds[donors[item]]]
        partner = rng.choice(alike or partners)
        donors[item], donors[partner] = donors[partner], donors[item]
    return donors


def absent(sample: Sample, kind: str) -> Sample:
    """The sample without its media of `kind`; the other media and all texts stay."""
    turns = tuple(replace(turn, media=tuple(ref for ref in turn.media if ref.kind != kind)) for turn in sample.turns)
    return replace(sample, turns=turns)


def _refs(sample: Sample, kind: str) -> list[MediaRef]:
    return [ref for turn in sample.turns for ref in turn.media if ref.kind == kind]


def _with_refs(sample: Sample, kind: str, donated: list[MediaRef]) -> Sample:
    """Each medium of `kind` exchanged in place; a donor with fewer media is gone through again."""
    turns, place = [], 0
    for turn in sample.turns:
        media = []
        for ref in turn.media:
            if ref.kind == kind:
                ref = donated[place % len(donated)]
                place += 1
            media.append(ref)
        turns.append(replace(turn, media=tuple(media)))
    return replace(sample, turns=tuple(turns))


def shuffled(samples: Sequence[Sample], golds: Sequence[str], kind: str, rng: random.Random) -> list[Sample] | None:
    """The samples, whose gold answers are `golds`, with their media of `kind` exchanged, none keeping its own.

    Samples without that kind stay as they are. None where too many samples show the same medium to exchange it.
    """
    places = [place for place, sample in enumerate(samples) if kind in kinds_of(sample)]
    refs = [_refs(samples[place], kind) for place in places]
    donors = derange([frozenset(str(ref.path) for ref in own) for own in refs], [golds[place] for place in places], rng)
    if donors is None:
        return None
    result = list(samples)
    for place, donor in zip(places, donors, strict=True):
        result[place] = _with_refs(samples[place], kind, refs[donor])
    return result
