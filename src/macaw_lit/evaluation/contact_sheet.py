"""Held-out questions with their media, answers and truths in one picture."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from macaw_lit.data.media import load_audio, load_image, load_video, name_of
from macaw_lit.errors import MediaError
from macaw_lit.evaluation.answers import Answered
from macaw_lit.evaluation.plots import FAINT, INK, new_figure
from macaw_lit.types import MediaRef, Place

RIGHT, WRONG = "#2c8a5f", "#c53d3d"
COLUMNS = 4
STRIP_FRAMES = 5
WRAP = 36  # characters of a caption line
RATE = 16000  # samples per second
WINDOW, HOP = 512, 128  # samples of a spectrogram's window and between windows


def write_contact_sheet(path: Path, items: Sequence[Answered]) -> None:
    """Writes a PNG of all items: pictures, film strips and spectrograms over question, answer and truth.

    A medium that cannot be read is named, with the cause, in its place.
    """
    rows = max(1, -(-len(items) // COLUMNS))
    figure = new_figure(3.1 * COLUMNS, 3.5 * rows)
    cells = np.asarray(figure.subfigures(rows, COLUMNS, wspace=0.04, hspace=0.04), dtype=object).reshape(-1)
    for cell, item in zip(cells, items, strict=False):
        _draw_item(cell, item)
    figure.savefig(path)


def _draw_item(cell: SubFigure, item: Answered) -> None:
    """Media above, texts below: a picture larger than a strip or a spectrogram."""
    heights = [1.6 if ref.kind == "image" else 0.9 for ref in item.media] or [1.6]
    *panels, caption = cell.subplots(len(heights) + 1, 1, height_ratios=[*heights, 0.85 * sum(heights)])
    for axes in (*panels, caption):
        axes.set_axis_off()
    for axes, ref in zip(panels, item.media, strict=False):
        _draw_medium(axes, ref)
    if not item.media:
        _note(panels[0], "text only", FAINT)
    colour, mark = (RIGHT, "✓") if item.right else (WRONG, "✗")
    lines = [
        (item.type, FAINT, 7.5, "normal", 1),
        (item.question, INK, 9.0, "bold", 3),
        (f"{mark} {item.answer or '(no answer)'}", colour, 9.0, "bold", 2),
        (f"truth: {item.truth}", INK, 8.5, "normal", 2),
    ]
    below = 2.0  # points under the caption's upper edge
    for text, ink, size, weight, most in lines:
        wrapped = [line for part in text.splitlines() for line in textwrap.wrap(part, WRAP)] or [""]
        if len(wrapped) > most:
            wrapped = [*wrapped[: most - 1], textwrap.shorten(" ".join(wrapped[most - 1 :]), WRAP, placeholder=" …")]
        note = caption.annotate(
            "\n".join(wrapped),
            (0, 1),
            (6, -below),
            "axes fraction",
            "offset points",
            color=ink,
            fontsize=size,
            weight=weight,
            va="top",
            parse_math=False,
        )
        note.set_in_layout(False)  # long texts must not squeeze the pictures
        below += 1.25 * size * len(wrapped) + 3


def _draw_medium(axes: Axes, ref: MediaRef) -> None:
    if ref.kind not in PICTURES:
        _note(axes, f"{ref.kind}: {name_of(ref.path)}", FAINT)
        return
    try:
        picture = PICTURES[ref.kind](ref.path)
    except MediaError as error:
        _note(axes, f"{ref.kind}: {error.cause}", WRONG)
        return
    if ref.kind == "audio":
        axes.imshow(picture, cmap="magma", vmin=-4, vmax=0, origin="lower", aspect="auto")
    else:
        axes.imshow(picture, interpolation="nearest" if picture.shape[0] <= 128 else "antialiased")


def _note(axes: Axes, text: str, colour: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=colour, style="italic", fontsize=9, parse_math=False)


def _film_strip(path: Place) -> UInt8[np.ndarray, "h w 3"]:
    """Frames over the whole clip, side by side on white."""
    frames = load_video(path, STRIP_FRAMES)
    gap = np.full((frames.shape[1], max(1, frames.shape[2] // 16), 3), 255, np.uint8)
    pieces = [piece for frame in frames for piece in (frame, gap)]
    return np.concatenate(pieces[:-1], axis=1)


def _spectrogram(path: Place) -> Float[np.ndarray, "bins windows"]:
    """log10 of the magnitude relative to a full-scale sine, from 0 to 8 kHz."""
    wave = load_audio(path, RATE)
    wave = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    hann = np.hanning(WINDOW)
    windows = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    magnitude = np.abs(np.fft.rfft(windows * hann, axis=1)).T / (hann.sum() / 2)
    return np.log10(magnitude + 1e-6)


PICTURES: dict[str, Callable[[Place], np.ndarray]] = {
    "image": load_image,
    "video": _film_strip,
    "audio": _spectrogram,
}
