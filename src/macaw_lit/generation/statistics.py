"""What a generated data set is, in numbers: Table 1 of the paper, the yield of every stage, types and cost."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from macaw_lit.errors import unwritable
from macaw_lit.evaluation.plots import FAINT, INK, TRUE_COLOUR, new_figure
from macaw_lit.generation.assemble import Assembled
from macaw_lit.generation.ground import groundedness
from macaw_lit.generation.review import Reviewed
from macaw_lit.generation.writers import write_text


@dataclass(frozen=True)
class Statistics:
    """Numbers of a data set.

    Attributes:
        items: pairs of instruction and response, as Table 1 counts them; `dialogues` and `media` hold them.
        words_per_instruction, words_per_response: means; words are what white space parts.
        groundedness: mean share of a response's content words that stand in the captions (`ground.groundedness`).
        stages: stage → dialogues left after it.
        answers: media asked about, answered, and by the fault that the last answer still had.
        types: question type → pairs.
        spent: requests, tokens and USD by the journal, over all runs, reservations of lost requests included.
        review: pairs by verdict.
        acceptance: share of judged pairs accepted as they stood, with the ends of its 95 % interval.
    """

    items: int
    dialogues: int
    media: int
    words_per_instruction: float
    words_per_response: float
    groundedness: float
    stages: dict[str, int]
    answers: dict[str, int]
    types: dict[str, int]
    spent: dict[str, float]
    review: dict[str, int]
    acceptance: tuple[float, float, float] | None


def statistics(assembled: Assembled, reviewed: Reviewed, spent: Mapping[str, float]) -> Statistics:
    """The numbers of what `reviewed` left of `assembled`."""
    pairs = [pair for item in reviewed.items for pair in item.pairs]
    asked = sum(len(pair.instruction.split()) for pair in pairs)
    said = sum(len(pair.response.split()) for pair in pairs)
    shares = [groundedness(pair, item.record) for item in reviewed.items for pair in item.pairs]
    known = [share for share in shares if share is not None]
    verdicts = {name: getattr(reviewed, name) for name in ("accepted", "corrected", "rejected", "unanswered")}
    return Statistics(
        items=len(pairs),
        dialogues=len(reviewed.items),
        media=len({(item.record.kind, item.record.id) for item in reviewed.items}),
        words_per_instruction=asked / max(1, len(pairs)),
        words_per_response=said / max(1, len(pairs)),
        groundedness=sum(known) / max(1, len(known)),
        stages={**assembled.stages, "review": len(reviewed.items)},
        answers=dict(assembled.media),
        types=dict(Counter(pair.type for pair in pairs).most_common()),
        spent=dict(spent),
        review=verdicts,
        acceptance=reviewed.acceptance,
    )


def table(found: Statistics) -> Group:
    """The numbers for a console."""
    heads = "items", "dialogues", "media", "words per\ninstruction", "words per\nresponse", "requests", "tokens", "USD"
    first = Table(*heads, box=SIMPLE_HEAD)
    means = f"{found.words_per_instruction:.1f}", f"{found.words_per_response:.1f}"
    spent = f"{found.spent['requests']:.0f}", f"{found.spent['tokens']:.0f}", f"{found.spent['usd']:.4f}"
    first.add_row(str(found.items), str(found.dialogues), str(found.media), *means, *spent)
    second = Table("stage", "left", "dropped", "of all asked", box=SIMPLE_HEAD)
    before = found.stages["asked"]
    for stage, left in found.stages.items():
        second.add_row(stage, str(left), str(before - left), f"{left / max(1, found.stages['asked']):.1%}")
        before = left
    answers = ", ".join(f"{count} {name}" for name, count in found.answers.items() if name != "media")
    lines = [f"{found.answers['media']} media: {answers}"]
    lines.append(f"{found.groundedness:.1%} of the responses' content words stand in the captions, on average")
    if found.acceptance:
        share, low, high = found.acceptance
        lines.append(f"reviewed: {share:.1%} accepted as they stood (95 % interval {low:.1%} to {high:.1%})")
    return Group(first, second, *lines)


def write_statistics(found: Statistics, folder: Path) -> None:
    """Write `statistics.json` and `statistics.png` into the folder."""
    write_text(folder / "statistics.json", json.dumps(asdict(found), indent=2) + "\n")
    figure = new_figure(9.5, 1.6 + 0.26 * max(len(found.stages), min(12, len(found.types))))
    panels = figure.subplots(1, 2)
    shown = dict(list(found.types.items())[:12])
    for axes, bars, title in ((panels[0], found.stages, "dialogues left"), (panels[1], shown, "pairs by type")):
        axes.barh(range(len(bars)), list(bars.values()), color=TRUE_COLOUR)
        axes.set_yticks(range(len(bars)), list(bars), color=INK)
        axes.invert_yaxis()
        axes.set_title(title, loc="left", color=INK, fontweight="bold", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        for place, count in enumerate(bars.values()):
            axes.text(count, place, f" {count}", va="center", color=FAINT, fontsize=8)
    try:
        figure.savefig(folder / "statistics.png")
    except OSError as error:
        raise unwritable(folder / "statistics.png", error) from error
