"""A modality-use report as a table for the terminal."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from macaw_lit.evaluation.answers import wilson
from macaw_lit.evaluation.results import Report, TypeResult


def render(report: Report) -> Group:
    """The report for a console of 100 columns: the table, why types failed, the verdict. Media not needed are dim."""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title="Which media the answers depend on",
        title_style="bold",
    )
    table.add_column("type", no_wrap=True)
    table.add_column("n", justify="right")
    table.add_column("chance", justify="right")
    table.add_column("true", no_wrap=True)
    table.add_column("absent", no_wrap=True)
    table.add_column("shuffled", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name, result in report.types.items():
        table.add_row(
            name if result.kind.gating else Text(f"{name} *", style="dim"),
            str(result.n),
            f"{result.kind.chance:.2f}",
            _share(result, result.hits),
            _by_kind(result, result.absent),
            _by_kind(result, result.shuffled),
            Text("pass", style="green") if result.passed else Text("fail", style="bold red"),
        )
    lines = [Text("* not gating. 95 % intervals. Dim: a medium the type does not need.", style="dim")]
    lines += [
        Text.assemble((f"{name}: ", "bold" if result.kind.gating else "dim"), "; ".join(result.reasons))
        for name, result in report.types.items()
        if not result.passed
    ]
    gating = [result.passed for result in report.types.values() if result.kind.gating]
    verdict = f"{'PASS' if report.passed else 'FAIL'}: {sum(gating)} of {len(gating)} gating types pass"
    return Group(table, *lines, Text(verdict, style="bold green" if report.passed else "bold red"))


def _share(result: TypeResult, hits: int) -> str:
    low, high = (f"{bound:.2f}".removeprefix("0") for bound in wilson(hits, result.n))
    return f"{result.share(hits):.2f} {low}–{high}"


def _by_kind(result: TypeResult, by_kind: Mapping[str, int]) -> Text:
    lines = [
        Text(f"{kind} {_share(result, hits)}", style="" if kind in result.kind.media else "dim")
        for kind, hits in by_kind.items()
    ]
    return Text("\n").join(lines)
