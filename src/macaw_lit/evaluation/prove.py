"""From a model's answers to everything that shows which media they depend on: table, JSON, plot and gallery."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from macaw_lit.evaluation.answers import Answer
from macaw_lit.evaluation.gallery import choose, write_gallery
from macaw_lit.evaluation.modality_use import measure
from macaw_lit.evaluation.plots import plot_accuracy
from macaw_lit.evaluation.report import render
from macaw_lit.evaluation.results import Report, read_types
from macaw_lit.types import Sample

RESULT_FILE = "modality_use.json"


def prove(
    answer: Answer, samples: Sequence[Sample], folder: Path, types: str, n: int, batch_size: int, seed: int = 0
) -> Report:
    """Measure, print the table, and write `modality_use.json`, `accuracy.png` and the gallery into `folder`.

    Args:
        types: path of the table of question types, as `read_types` reads it.
        n: the most items of a type.

    Raises:
        DataError: the table or a sample does not fit.
    """
    with Progress() as progress:
        task = progress.add_task("asking held-out questions", total=None)
        report = measure(
            samples,
            read_types(Path(types)),
            answer,
            n,
            seed,
            lambda done, total: progress.update(task, completed=done, total=total),
            batch_size,
        )
    (folder / RESULT_FILE).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    plot_accuracy(report, folder / "accuracy.png")
    write_gallery(folder, choose(report.answered))
    Console(width=max(100, Console().width)).print(render(report))
    return report
