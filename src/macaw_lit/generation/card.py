"""The card of a generated data set: what it was made from, how, and what every stage left; facts only."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from macaw_lit.generation.assemble import Item
from macaw_lit.generation.statistics import Statistics
from macaw_lit.generation.templates import Asking
from macaw_lit.generation.writers import write_text

LICENCES = {
    "coco": "COCO's captions are CC BY 4.0; each picture has the licence that its row in their file names.",
    "charades": "Charades is for non-commercial use only and must not be passed on (Allen Institute for AI); texts "
    "made from its descriptions are bound by that.",
    "avsd": "AVSD's dialogues have the licence of their page, the videos Charades' (non-commercial only).",
    "captions": "The captions' licence is known to whoever wrote them; it is not recorded here.",
}
"""Source → what binds those who use texts made from its captions."""

_CARD = """\
---
tags:
- synthetic
- instruction-tuning
- macaw-lit
---

# Instruction data from captions

{items} pairs of instruction and response about {media} media, written by a language model that was given texts about
them and never the media themselves. What the texts leave out or get wrong, so do these.

| | |
|---|---|
{facts}

## What every stage left

| stage | dialogues | of all asked |
|---|---|---|
{stages}

Answers: {answers}. {review}

## Types of question

{types}

## Licence

{licences} Texts by a hosted model are also bound by its provider's terms. The media are not part of this data set.

## Provenance

Every row carries its own: source, annotations, template and its digest, model, seed, job, filters and time. The journal
beside the files has every request and answer; the files are a function of it and of the settings.
"""


def dataset_card(found: Statistics, items: Sequence[Item], sources: Iterable[str], asking: Asking, rules: Any) -> str:
    """Markdown from the statistics, the items' provenance and the settings `rules`; equal inputs give equal text."""
    template, known = asking.template, [item.provenance for item in items]
    times = sorted(str(each["created"]) for each in known if each.get("created"))
    facts = {
        "captions of": ", ".join(sorted(set(sources))) or "nothing",
        "model": ", ".join(sorted({str(each.get("model")) for each in known})) or asking.model,
        "asked as": f"temperature {asking.temperature}, seed {asking.seed}, up to {asking.max_tokens} tokens",
        "template": f"{template.name}, digest {template.digest}, {template.pairs} × {template.turns}",
        "answered": f"{times[0]} to {times[-1]}" if times else "never",
        "words": f"{found.words_per_instruction:.1f} an instruction, {found.words_per_response:.1f} a response",
        "grounded": f"{found.groundedness:.1%} of the responses' content words stand in the captions, on average",
        "rules": ", ".join(f"{name}: {value}" for name, value in rules.items()),
        "cost": "{requests:.0f} requests, {tokens:.0f} tokens, {usd:.4f} USD".format(**found.spent),
    }
    asked = max(1, found.stages.get("asked", 1))
    stages = [f"| {name} | {left} | {left / asked:.1%} |" for name, left in found.stages.items()]
    answers = ", ".join(f"{count} {name}" for name, count in found.answers.items())
    review = "No person has reviewed them."
    if found.acceptance:
        share, low, high = found.acceptance
        review = f"Of the reviewed pairs {share:.1%} were accepted as they stood (95 %: {low:.1%} to {high:.1%})."
    return _CARD.format(
        items=found.items,
        media=found.media,
        facts="\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
        stages="\n".join(stages),
        answers=answers,
        review=review,
        types=", ".join(f"{_cell(name)} {count}" for name, count in found.types.items()) or "none",
        licences=" ".join(LICENCES.get(name, LICENCES["captions"]) for name in sorted(set(sources))),
    )


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def write_card(path: Path, *facts: Any) -> None:
    """Write `dataset_card` of the facts."""
    write_text(path, dataset_card(*facts))
