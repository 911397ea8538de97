"""The picture of held-out questions shows the media, and says where one cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from macaw_lit.evaluation.answers import Answered
from macaw_lit.evaluation.contact_sheet import RIGHT, WRONG, write_contact_sheet


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), np.float64)


def share_of(picture: np.ndarray, colour: tuple[float, ...]) -> float:
    return float((np.abs(picture - 255 * np.array(colour)).max(-1) < 12).mean())


def test_pictures_frames_and_sounds_are_drawn(tmp_path: Path, items: list[Answered]) -> None:
    write_contact_sheet(tmp_path / "sheet.png", items)
    picture = pixels(tmp_path / "sheet.png")
    height, width = picture.shape[:2]
    assert 1.0 < width / height < 2.5  # seven items: two rows of four
    red, strip, sound = (picture[: height // 4, number * width // 4 : (number + 1) * width // 4] for number in range(3))
    assert share_of(red, (230 / 255, 20 / 255, 20 / 255)) > 0.2
    greens = strip[np.abs(strip[..., 1] - 200).astype(int) < 12]
    assert len(np.unique((greens[..., 0] / 25).astype(int))) >= 5  # five frames, each redder than the last
    assert sound.std() > 20


@pytest.mark.parametrize(("place", "colour", "other"), [(0, RIGHT, WRONG), (1, WRONG, RIGHT)])
def test_marks_tell_right_from_wrong(
    tmp_path: Path, items: list[Answered], place: int, colour: str, other: str
) -> None:
    write_contact_sheet(tmp_path / "sheet.png", [items[place]])
    picture = pixels(tmp_path / "sheet.png")
    assert share_of(picture, to_rgb(colour)) > 20 * share_of(picture, to_rgb(other))


def test_no_items_give_an_empty_picture(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.png", [])
    assert pixels(tmp_path / "sheet.png").min() == 255


def test_long_texts_leave_the_picture_its_size(tmp_path: Path, items: list[Answered]) -> None:
    shares = []
    for answer in ("It is red.", "It is very red. " * 60, "x" * 900):
        write_contact_sheet(tmp_path / "sheet.png", [Answered(items[0].sample, answer)])
        shares.append(share_of(pixels(tmp_path / "sheet.png"), (230 / 255, 20 / 255, 20 / 255)))
    assert shares == pytest.approx([shares[0]] * 3, rel=0.02)
