"""What a sweep found as a picture: the metric over each setting that was varied."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from macaw_lit.evaluation.plots import INK, TRUE_COLOUR, new_figure, style


def plot_sweep(rows: Sequence[Mapping[str, Any]], varied: Sequence[str], metric: str, path: Path) -> None:
    """Writes a PNG with a panel per varied setting and a mark per job; numbers on an axis, words side by side.

    Args:
        rows: jobs, each with a finite `metric` and its settings as they were typed.
    """
    settings = list(varied) or ["job"]
    figure = new_figure(max(4.5, 3.4 * len(settings)), 3.6)
    for axes, key in zip(figure.subplots(1, len(settings), sharey=True, squeeze=False)[0], settings, strict=True):
        words = [str(row.get(key, "")) for row in rows]
        numbers = [_number(word) for word in words]
        places: list[Any] = numbers
        if all(number is not None for number in numbers):
            if min(places) > 0 and max(places) > 50 * min(places):
                axes.set_xscale("log")
            elif all(place == int(place) for place in places):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            names = list(dict.fromkeys(words))
            places = [names.index(word) for word in words]
            axes.set_xticks(range(len(names)), names, rotation=20 if max(map(len, names)) > 8 else 0)
            axes.set_xlim(-0.6, len(names) - 0.4)
        axes.scatter(places, [row[metric] for row in rows], s=34, color=TRUE_COLOUR, alpha=0.75, zorder=3)
        style(axes, "y")
        axes.set_xlabel(key, color=INK)
    figure.supylabel(metric, color=INK, fontsize=10)
    figure.savefig(path)


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
