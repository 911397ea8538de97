"""The page of held-out questions: complete, self-contained, and safe against what stands in texts and names."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from macaw_lit.evaluation.answers import Answered
from macaw_lit.evaluation.gallery import choose, write_gallery


class Page(HTMLParser):
    """Collects the elements and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def folder(tmp_path: Path, items: list[Answered]) -> Path:
    write_gallery(tmp_path / "run", items)
    return tmp_path / "run"


@pytest.fixture
def page(folder: Path) -> Page:
    return Page((folder / "gallery.html").read_text(encoding="utf-8"))


def test_texts_are_shown_and_never_run(page: Page) -> None:
    assert not page.all("script")
    assert not page.all("b")
    for text in (
        "What <script>alert(1)</script> & $x_1$?",
        "<b>Slow",
        "truth",
        "Fast.",
        "(no answer)",
        "Reverse.\na b",
    ):
        assert text in page.text
    assert "5 of 7 answered like the truth" in page.text
    assert [attributes["class"] for attributes in page.all("dd") if "class" in attributes].count("wrong") == 2


def test_media_are_copied_once_and_addressed_relative_to_the_page(
    folder: Path, page: Page, items: list[Answered]
) -> None:
    addresses = [str(attributes["src"]) for tag in ("img", "video", "audio") for attributes in page.all(tag)]
    assert len(addresses) == 5
    assert len(set(addresses)) == 4
    for address in addresses:
        assert address.startswith("gallery/")
        assert (folder / unquote(address)).is_file()
    assert len(list((folder / "gallery").iterdir())) == 4
    first = folder / unquote(str(page.all("img")[0]["src"]))
    assert first.read_bytes() == Path(items[0].media[0].path).read_bytes()


def test_a_video_plays_its_own_sound(page: Page) -> None:
    assert len(page.all("video")) == len(page.all("audio")) == 1
    assert "controls" in page.all("video")[0]
    assert "controls" in page.all("audio")[0]
    assert str(page.all("audio")[0]["src"]).endswith("beep.wav")


def test_a_missing_medium_is_named(page: Page) -> None:
    assert "image missing: gone.jpg" in page.text


def test_picture_is_written_beside_the_page(folder: Path) -> None:
    with Image.open(folder / "gallery.png") as picture:
        assert picture.format == "PNG"


def test_writing_twice_gives_the_same(folder: Path, items: list[Answered]) -> None:
    before = (folder / "gallery.html").read_bytes()
    write_gallery(folder, items)
    assert (folder / "gallery.html").read_bytes() == before


def test_choose_takes_types_in_turn(items: list[Answered]) -> None:
    assert [item.type for item in choose(items, 6)] == ["image.a", "video.b", "audio.c", "text.d", "image.a", "image.a"]
    assert choose(items, 100)[:2] == [items[0], items[1]]
    assert len(choose(items, 100)) == 7
    assert choose([], 3) == []
