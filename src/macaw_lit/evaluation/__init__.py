"""Proof that a model uses each of its media: accuracy with true, absent and shuffled media, tables, pictures."""

from macaw_lit.evaluation.answers import Answer, Answered, exact_match, normalise, wilson
from macaw_lit.evaluation.gallery import choose, write_gallery
from macaw_lit.evaluation.modality_use import measure
from macaw_lit.evaluation.plots import plot_accuracy, plot_loss, read_losses
from macaw_lit.evaluation.report import render
from macaw_lit.evaluation.results import QuestionType, Report, TypeResult, read_types

__all__ = [
    "Answer",
    "Answered",
    "QuestionType",
    "Report",
    "TypeResult",
    "choose",
    "exact_match",
    "measure",
    "normalise",
    "plot_accuracy",
    "plot_loss",
    "read_losses",
    "read_types",
    "render",
    "wilson",
    "write_gallery",
]
