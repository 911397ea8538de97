"""A modality-use report and a run's loss as pictures."""

import csv
import math
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from macaw_lit.errors import DataError
from macaw_lit.evaluation.answers import wilson
from macaw_lit.evaluation.results import BAR, Report, TypeResult

TRUE_COLOUR, ABSENT_COLOUR, SHUFFLED_COLOUR = "#2b6cb0", "#dd8a28", "#3f9c7a"
HELDOUT_COLOUR = ABSENT_COLOUR
INK, FAINT = "#22262b", "#8b929b"
DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches that needs no display and leaves matplotlib's global state alone."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_accuracy(report: Report, path: Path) -> None:
    """Writes a PNG: per type bars for true, absent and shuffled media with 95 % intervals, and a mark at chance.

    Media that a type does not need have no bars: hollow marks on the true bar show that they change nothing.
    """
    results = list(report.types.items())
    heights = [1 + 2 * len(result.kind.media) for _, result in results]
    figure = new_figure(9.5, 1.6 + 0.17 * (sum(heights) + len(heights)))
    axes = figure.subplots()
    top, centres = 0.0, []
    for (_, result), rows in zip(results, heights, strict=True):
        _draw_type(axes, result, top)
        axes.plot([result.kind.chance] * 2, [top - 0.5, top + rows - 0.5], color=INK, linewidth=1.6, zorder=4)
        centres.append(top + (rows - 1) / 2)
        top += rows + 1
    axes.set_yticks(centres, [name if result.kind.gating else f"{name} *" for name, result in results])
    for label, (_, result) in zip(axes.get_yticklabels(), results, strict=True):
        label.set_color(INK if result.kind.gating else FAINT)
    axes.set_ylim(top - 0.7, -1.0)
    axes.axvline(BAR, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    style(axes, "x")
    axes.set_xlim(0, 1.02)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("accuracy on held-out items (exact match, 95 % interval)", color=INK)
    _legend(axes)
    figure.suptitle("Which media the answers depend on", x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    figure.text(0.99, 0.004, "* not gating", ha="right", va="bottom", color=FAINT, fontsize=8)
    figure.savefig(path)


def _draw_type(axes: Axes, result: TypeResult, top: float) -> None:
    """One type's bars from `top` downwards: true, then absent and shuffled of each needed kind."""
    if not result.n:
        axes.text(0.01, top, "no held-out items", va="center", fontsize=7, color=FAINT)
        return
    bars = [(result.hits, TRUE_COLOUR, "")]
    for kind in result.kind.media:
        suffix = kind if len(result.kind.media) > 1 else ""
        bars += [(result.absent.get(kind, -1), ABSENT_COLOUR, suffix)]
        bars += [(result.shuffled.get(kind, -1), SHUFFLED_COLOUR, suffix)]
    for row, (hits, colour, suffix) in enumerate(bars):
        if hits < 0:
            axes.text(0.01, top + row, "not measured", va="center", fontsize=7, color=FAINT)
            continue
        share, (low, high) = result.share(hits), wilson(hits, result.n)
        axes.barh(top + row, share, height=0.86, color=colour, zorder=2)
        spread = [[max(0.0, share - low)], [max(0.0, high - share)]]
        axes.errorbar(share, top + row, xerr=spread, color=INK, linewidth=0.9, capsize=2, zorder=3)
        axes.text(high + 0.012, top + row, suffix, va="center", fontsize=7, color=FAINT)
    for by_kind, marker, colour in ((result.absent, "D", ABSENT_COLOUR), (result.shuffled, "o", SHUFFLED_COLOUR)):
        others = [result.share(hits) for kind, hits in by_kind.items() if kind not in result.kind.media]
        axes.scatter(
            others, [top] * len(others), s=22, c="white", marker=marker, edgecolors=colour, linewidths=1.4, zorder=5
        )


def _legend(axes: Axes) -> None:
    """Two rows above the axes: bars over the marks of the same colour."""
    handles: list[Artist] = [
        Patch(color=TRUE_COLOUR, label="true media"),
        Line2D([], [], color=INK, linewidth=1.6, label="chance"),
    ]
    for word, marker, colour in (("absent", "D", ABSENT_COLOUR), ("shuffled", "o", SHUFFLED_COLOUR)):
        mark = Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor="white", markersize=5)
        mark.set_label(f"other medium {word}")
        handles += [Patch(color=colour, label=f"needed medium {word}"), mark]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8, labelcolor=INK
    )


def style(axes: Axes, grid: Literal["x", "y"]) -> None:
    """No frame but two pale sides, and a grid across one axis behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.grid(axis=grid, color="#e6e8eb", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)


def plot_loss(metrics: Path, path: Path) -> None:
    """Writes a PNG of a run's losses over steps: in training, as logged and smoothed, and held-out where validated.

    Args:
        metrics: a run's `metrics.csv`.

    Raises:
        DataError: the file cannot be read, or holds no finite value of `train/loss`.
    """
    found = read_losses(metrics)
    (steps, losses), (held_steps, held) = (_finite(found.get(name, [])) for name in ("train/loss", "val/loss"))
    if not len(steps):
        raise DataError(f"{metrics}: no finite 'train/loss' among {[*found]}; log it with logger=csv before plotting")
    lost = len(found["train/loss"]) - len(losses)
    window = max(1, len(losses) // 40)
    kernel = np.ones(window)
    smooth = np.convolve(losses, kernel, "same") / np.convolve(np.ones(len(losses)), kernel, "same")
    figure = new_figure(8.0, 4.0)
    axes = figure.subplots()
    if window > 1:
        axes.plot(steps, losses, color=TRUE_COLOUR, alpha=0.28, linewidth=0.9, label="as logged")
    label, marker = (f"mean of {window}", "") if window > 1 else ("in training", "." if len(losses) < 30 else "")
    axes.plot(steps, smooth, color=TRUE_COLOUR, linewidth=2, marker=marker, markersize=9, label=label)
    title = f"train/loss: {smooth[0]:.3g} → {smooth[-1]:.3g}" + (f", {lost} not finite left out" if lost else "")
    if len(held):
        axes.plot(held_steps, held, color=HELDOUT_COLOUR, linewidth=1.4, marker="o", markersize=4, label="held out")
        title += f"   val/loss: {held[0]:.3g} → {held[-1]:.3g}"
    style(axes, "y")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not len(held) and len(steps) == 1:
        axes.set_xticks(steps)
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("nats per response token", color=INK)
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    figure.savefig(path)


def read_losses(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of `train/loss` and `val/loss`, where a run's `metrics.csv` has any.

    Raises:
        DataError: the file cannot be read.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    try:
        with metrics.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name in ("train/loss", "val/loss"):
                    if row.get("step") and row.get(name):
                        found.setdefault(name, []).append((int(row["step"]), float(row[name])))
    except (OSError, ValueError) as error:
        raise DataError(f"{metrics}: cannot be read ({error}); expected the metrics.csv of a run") from error
    return found


def _finite(values: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps, losses = np.array([(step, loss) for step, loss in values if math.isfinite(loss)]).reshape(-1, 2).T
    return steps, losses
