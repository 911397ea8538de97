"""A report for the eye: a table for the console, and a web page with thumbnails that needs no other file."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from rich.box import SIMPLE_HEAD
from rich.table import Table

from macaw_lit.data.doctor.examine import Medium
from macaw_lit.data.doctor.survey import ROW_ODDITIES, Finding, Report
from macaw_lit.data.media import ODDITIES

CARDS = 240  # findings that the page shows
SAME = 24  # findings of one cause that the page shows

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Data check-up</title>
<style>
:root {{ color-scheme: light dark; --paper: #f5f6f8; --card: #fff; --ink: #22262b; --faint: #69717b; --line: #e1e4e8;
  --bad: #c53d3d; --odd: #9a6b00; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #15181c; --card: #1f2329; --ink: #e8eaed; --faint: #9aa3ad;
  --line: #333941; --bad: #ef8080; --odd: #d9a93a; }} }}
body {{ margin: 0 auto; max-width: 75rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; margin: 0; }}
.sum {{ color: var(--faint); margin: .25rem 0 1.5rem; }}
table {{ border-collapse: collapse; background: var(--card); margin-bottom: 2rem; width: 100%; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .4rem .7rem; text-align: left; vertical-align: top; }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: .9rem 1rem;
  overflow-wrap: anywhere; }}
article p {{ margin: .2rem 0; font-size: .85rem; }}
img {{ display: block; max-width: 7rem; max-height: 7rem; margin-bottom: .5rem; }}
.cause {{ font-weight: 600; font-size: 1rem; }}
.bad {{ color: var(--bad); }}
.odd {{ color: var(--odd); }}
.faint {{ color: var(--faint); }}
</style>
</head>
<body>
<h1>Data check-up</h1>
<p class="sum">{sum}</p>
<table><tr><th>split<th>source<th>rows<th>usable<th>not usable<th>odd</tr>
{rows}
</table>
<main>
{cards}
</main>
<p class="sum">{rest}</p>
</body>
</html>
"""


def in_words(report: Report) -> str:
    """The report in one line."""
    share = report.lost / max(report.rows, 1)
    return f"{report.lost} of {report.rows} rows cannot be used ({share:.2%}); {report.media} media examined"


def table(report: Report) -> Table:
    """Rows of every source for a console."""
    result = Table("split", "source", "rows", "usable", "not usable", "odd", box=SIMPLE_HEAD)
    for tally in report.tallies:
        lost, odd = _causes(tally.rejected + tally.unusable, "\n"), _causes(tally.odd, "\n")
        result.add_row(tally.split, tally.source, str(tally.rows), str(tally.usable), lost, odd)
    return result


def _causes(causes: Counter[str], between: str) -> str:
    return between.join(f"{count} {cause}" for cause, count in causes.most_common())


def shown(report: Report) -> list[Finding]:
    """The findings that the page has room for: at most `SAME` of a cause, what costs rows first."""
    kept: Counter[tuple[str, str]] = Counter()
    chosen = []
    for finding in report.findings:
        key = (finding.level, finding.cause)
        kept[key] += 1
        if kept[key] <= SAME:
            chosen.append(finding)
    return chosen[:CARDS]


def page(report: Report, findings: Sequence[Finding], thumbnails: Mapping[Medium, bytes]) -> str:
    """The web page with a card for each of `findings`; everything that comes from the data is escaped."""
    rows = (
        f"<tr><td>{_safe(tally.split)}<td>{_safe(tally.source)}<td class=n>{tally.rows}<td class=n>{tally.usable}"
        f"<td>{_safe(_causes(tally.rejected + tally.unusable, ', '))}<td>{_safe(_causes(tally.odd, ', '))}</tr>"
        for tally in report.tallies
    )
    left = len(report.findings) - len(findings)
    return PAGE.format(
        sum=_safe(in_words(report)),
        rows="\n".join(rows),
        cards="\n".join(_card(finding, thumbnails.get(Medium(finding.kind, finding.place))) for finding in findings),
        rest=f"{left} more findings are in report.json." if left else "",
    )


def _card(finding: Finding, thumbnail: bytes | None) -> str:
    source = "" if thumbnail is None else base64.b64encode(thumbnail).decode()
    picture = f'<img src="data:image/jpeg;base64,{source}" alt="">' if source else ""
    detail = finding.detail or {**ODDITIES, **ROW_ODDITIES}.get(finding.cause, "")
    many = f" · {finding.rows} rows" if finding.rows > 1 else ""
    style = "odd" if finding.level == "odd" else "bad"
    return f"""<article>{picture}<p class="cause {style}">{_safe(finding.cause)}</p>
<p>{_safe(str(finding.place))}</p><p class="faint">{_safe(detail)}</p>
<p class="faint">{_safe(finding.level)} · {_safe(finding.split)} · {_safe(finding.source)}{many}</p></article>"""


def _safe(text: str) -> str:
    """Text for HTML; names that are not UTF-8 show their bytes."""
    return escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))
