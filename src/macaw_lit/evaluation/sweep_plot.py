"""What a sweep found as a picture: the metric over each setting that was varied."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from macaw_lit.evaluation.plots import ABSENT_COLOUR, FAINT, INK, SHUFFLED_COLOUR, TRUE_COLOUR, new_figure, style

Row = Mapping[str, Any]
COLOURS = (TRUE_COLOUR, ABSENT_COLOUR, SHUFFLED_COLOUR, "#9b4f96", "#b23a48", "#6b7280")
FEW = 6  # values of a setting that stand side by side
PANELS = 4  # in a row


def plot_sweep(rows: Sequence[Row], varied: Sequence[str], metric: str, best: Row, path: Path) -> None:
    """Writes a PNG with a panel per varied setting and a mark per job, the best one ringed.

    A few values, and words, stand side by side with a line at the mean of each; more numbers are on an axis. Colours
    tell the values of the first setting that is a choice of words.

    Args:
        rows: jobs, each with a finite `metric` and its settings as they were typed.
        best: one of them.
    """
    settings = list(varied) or ["job"]
    across, down = min(PANELS, len(settings)), -(-len(settings) // PANELS)
    figure = new_figure(max(5.0, 3.2 * across), 3.3 * down + 0.7)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    values = [row[metric] for row in rows]
    if min(values) > 0 and max(values) > 50 * min(values):
        panels[0].set_yscale("log")  # of all, which share it
    told = next((key for key in settings if _colours(rows, key)), None)
    colours = _colours(rows, told) if told else {}
    for axes, key in zip(panels, settings, strict=False):
        places = _lay_out(axes, rows, key, metric)
        style(axes, "y")
        axes.margins(0.08)
        marks = [colours.get(str(row.get(told or "", "")), TRUE_COLOUR) for row in rows]
        axes.scatter(places, values, s=34, c=marks, alpha=0.8, linewidths=0, zorder=3)
        place = next(place for place, row in zip(places, rows, strict=True) if row is best)
        axes.scatter([place], [best[metric]], s=130, facecolors="none", edgecolors=INK, linewidths=1.4, zorder=4)
        axes.set_xlabel(key, color=INK)
    for axes in panels[len(settings) :]:
        axes.set_visible(False)
    for name, colour in colours.items():
        panels[0].scatter([], [], s=34, color=colour, label=name)
    panels[0].scatter([], [], s=90, facecolors="none", edgecolors=INK, label=f"best: job {best.get('job', '')}")
    told_by = {name: mark for axes in panels for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = len(told_by) if across > 1 else 2
    figure.legend(
        [*told_by.values()],
        [*told_by],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.supylabel(metric, color=INK, fontsize=10)
    figure.savefig(path)


def _lay_out(axes: Axes, rows: Sequence[Row], key: str, metric: str) -> list[float]:
    """Makes the axis of a setting; where each job stands on it."""
    words = [str(row.get(key, "")) for row in rows]
    numbers = [_number(word) for word in words]
    known = [number for number in numbers if number is not None]
    numeric = len(known) == len(words)
    if numeric and len({*known}) > FEW:
        if min(known) > 0 and max(known) > 50 * min(known):
            axes.set_xscale("log")
        elif all(number == int(number) for number in known):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return known
    names = list(dict.fromkeys(words))
    if numeric:
        names.sort(key=float)
    for place, name in enumerate(names):
        found = [row[metric] for row, word in zip(rows, words, strict=True) if word == name]
        if len(found) > 1:
            axes.hlines(mean(found), place - 0.25, place + 0.25, color=FAINT, linewidth=1.4, zorder=2, label="mean")
    turned = sum(map(len, names)) > 24
    axes.set_xticks(range(len(names)), [name if len(name) < 25 else f"{name[:11]}…{name[-11:]}" for name in names])
    if turned:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlim(-0.6, len(names) - 0.4)
    return [float(names.index(word)) for word in words]


def _colours(rows: Sequence[Row], key: str) -> dict[str, str]:
    """A colour for each value, if they are a few words."""
    names = list(dict.fromkeys(str(row.get(key, "")) for row in rows))
    words = 1 < len(names) <= len(COLOURS) and not all(_number(name) is not None for name in names)
    return dict(zip(names, COLOURS, strict=False)) if words else {}


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
