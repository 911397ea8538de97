"""Held-out questions with their media, the model's answer and the truth, as a web page and as one picture."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from macaw_lit.data.media import name_of, open_place
from macaw_lit.errors import MediaError
from macaw_lit.evaluation.answers import Answered
from macaw_lit.evaluation.contact_sheet import write_contact_sheet
from macaw_lit.types import MediaRef

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Held-out questions</title>
<style>
:root {{ color-scheme: light dark; --paper: #f5f6f8; --card: #fff; --ink: #22262b; --faint: #69717b; --line: #e1e4e8;
  --right: #2c8a5f; --wrong: #c53d3d; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #15181c; --card: #1f2329; --ink: #e8eaed; --faint: #9aa3ad;
  --line: #333941; --right: #5cc596; --wrong: #ef8080; }} }}
body {{ margin: 0 auto; max-width: 75rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; margin: 0; }}
.sum {{ color: var(--faint); margin: .25rem 0 1.5rem; }}
main {{ display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(16.5rem, 1fr)); }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: .75rem; overflow: hidden;
  display: flex; flex-direction: column; }}
img, video {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; }}
.small {{ image-rendering: pixelated; }}
audio {{ display: block; width: calc(100% - 1.5rem); margin: .75rem .75rem 0; }}
.text {{ padding: .9rem 1rem 1rem; overflow-wrap: anywhere; }}
.text p {{ margin: .15rem 0; white-space: pre-line; }}
.type, dt {{ color: var(--faint); font-size: .8rem; }}
.question {{ font-weight: 600; }}
.none {{ margin: 0; padding: .9rem 1rem 0; color: var(--faint); font-style: italic; }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .2rem .7rem; align-items: baseline; margin: .6rem 0 0; }}
dd {{ margin: 0; }}
.right {{ color: var(--right); font-weight: 600; }}
.wrong {{ color: var(--wrong); font-weight: 600; }}
</style>
</head>
<body>
<h1>Held-out questions</h1>
<p class="sum">{right} of {total} answered like the truth.</p>
<main>
{cards}
</main>
</body>
</html>
"""


def choose(answered: Sequence[Answered], count: int = 12) -> list[Answered]:
    """The first item of each question type, then the second of each, up to `count`; right and wrong as they come."""
    by_type: dict[str, list[Answered]] = defaultdict(list)
    for item in answered:
        by_type[item.type].append(item)
    turns = [(place, order) for order, group in enumerate(by_type.values()) for place in range(len(group))]
    groups = list(by_type.values())
    return [groups[order][place] for place, order in sorted(turns)[:count]]


def write_gallery(folder: Path, items: Sequence[Answered]) -> None:
    """Writes `gallery.html`, the media it shows under `gallery/`, and `gallery.png` into `folder`.

    A medium that cannot be read is named in its place. All text is escaped.
    """
    media = folder / "gallery"
    media.mkdir(parents=True, exist_ok=True)
    copies = _copy_media(media, items)
    page = PAGE.format(
        right=sum(item.right for item in items),
        total=len(items),
        cards="\n".join(_card(item, copies) for item in items),
    )
    (folder / "gallery.html").write_text(page, encoding="utf-8")
    write_contact_sheet(folder / "gallery.png", items)


def _copy_media(folder: Path, items: Sequence[Answered]) -> dict[str, str]:
    """Copies every readable file once; path → its address relative to the page."""
    copies: dict[str, str] = {}
    for place in {str(ref.path): ref.path for item in items for ref in item.media}.values():
        name = f"{len(copies) + 1:03d}-{name_of(place)}"
        try:
            with open_place(place) as file, (folder / name).open("wb") as copy:
                shutil.copyfileobj(file, copy)
        except MediaError:
            continue
        copies[str(place)] = f"{folder.name}/{quote(name)}"
    return copies


def _card(item: Answered, copies: dict[str, str]) -> str:
    refs = item.media
    videos = {str(ref.path) for ref in refs if ref.kind == "video"}
    shown = [ref for ref in refs if ref.kind != "audio" or str(ref.path) not in videos]  # a video plays its own sound
    mark, word = ("✓", "right") if item.right else ("✗", "wrong")
    return f"""<article>
{"".join(_element(ref, copies) for ref in shown) or '<p class="none">text only</p>'}
<div class="text"><p class="type">{escape(item.type)}</p>
<p class="question">{escape(item.question)}</p>
<dl><dt>model</dt><dd class="{word}">{mark} {escape(item.answer) or "(no answer)"}</dd>
<dt>truth</dt><dd>{escape(item.truth)}</dd></dl></div>
</article>"""


def _element(ref: MediaRef, copies: dict[str, str]) -> str:
    address = copies.get(str(ref.path))
    if address is None:
        return f'<p class="none">{escape(ref.kind)} missing: {escape(name_of(ref.path))}</p>'
    source = escape(address)
    match ref.kind:
        case "image":
            return f'<img class="small" src="{source}" alt="the picture asked about" loading="lazy">'
        case "video":
            return f'<video class="small" src="{source}" controls loop preload="metadata"></video>'
        case "audio":
            return f'<audio src="{source}" controls preload="metadata"></audio>'
        case _:
            return f'<p class="none">{escape(ref.kind)}: <a href="{source}">{source}</a></p>'
