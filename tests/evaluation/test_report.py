"""The table on a console of 100 columns."""

import io

from rich.console import Console

from macaw_lit.evaluation.report import render
from macaw_lit.evaluation.results import QuestionType, Report, TypeResult

BOTH = {"video": 60, "audio": 50}
REPORT = Report(
    {
        "image.background": TypeResult(QuestionType(("image",), True, 1 / 3), 200, 196, {"image": 70}, {"image": 60}),
        "av.both": TypeResult(QuestionType(("video", "audio"), True, 0.25), 200, 170, BOTH, BOTH),
        "text.reverse": TypeResult(QuestionType((), False, 0.0), 200, 199),
    }
)


def shown(report: Report) -> list[str]:
    console = Console(width=100, file=io.StringIO(), legacy_windows=False)
    console.print(render(report))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_every_number_is_readable_at_100_columns() -> None:
    lines = shown(REPORT)
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "…" not in text
    row = next(line for line in lines if "image.background" in line)
    assert " ".join(row.split()) == (
        "image.background 200 0.33 0.98 .95–.99 image 0.35 .29–.42 image 0.30 .24–.37 pass"
    )
    assert "audio 0.25 .20–.31" in text
    assert "text.reverse *" in text


def test_reasons_and_verdict_follow_the_table() -> None:
    lines = shown(REPORT)
    assert any("av.both: accuracy 0.85 < 0.90" in line for line in lines)
    assert lines[-1] == "FAIL: 1 of 2 gating types pass"
    passing = Report({"image.background": REPORT.types["image.background"]})
    assert shown(passing)[-1] == "PASS: 1 of 1 gating types pass"
