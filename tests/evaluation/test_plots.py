"""The accuracy plot and the loss curve are real pictures of what they are given."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from macaw_lit.errors import DataError
from macaw_lit.evaluation.plots import HELDOUT_COLOUR, TRUE_COLOUR, plot_accuracy, plot_loss
from macaw_lit.evaluation.results import QuestionType, Report, TypeResult

IMAGE = QuestionType(("image",), True, 0.25)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"), np.float64)


def share_of(picture: np.ndarray, colour: str) -> float:
    return float((np.abs(picture - 255 * np.array(to_rgb(colour))).max(-1) < 12).mean())


def test_accuracy_plot_shows_longer_bars_for_better_models(tmp_path: Path) -> None:
    shares = []
    for hits in (40, 95):
        report = Report({"image.colour": TypeResult(IMAGE, 100, hits, {"image": 24}, {"image": 26})})
        plot_accuracy(report, tmp_path / "accuracy.png")
        picture = pixels(tmp_path / "accuracy.png")
        assert picture.std() > 10
        shares.append(share_of(picture, TRUE_COLOUR))
    assert shares[1] > 1.7 * shares[0] > 0


def test_accuracy_plot_takes_all_sorts_of_types(tmp_path: Path) -> None:
    both = QuestionType(("video", "audio"), True, 0.25)
    types = {
        "image.colour": TypeResult(IMAGE, 100, 100, {"image": 0, "audio": 99}, {"audio": 100}),
        "av.both": TypeResult(both, 10, 9, {"video": 1, "audio": 2}, {"video": 3, "audio": 1}),
        "text.$x_1$": TypeResult(QuestionType((), False, 0.0), 5, 5),
        "video.first": TypeResult(both, 0, 0),
    }
    plot_accuracy(Report(types), tmp_path / "accuracy.png")
    assert pixels(tmp_path / "accuracy.png").std() > 10
    plot_accuracy(Report({}), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()


def test_loss_curves_of_training_and_validation(tmp_path: Path) -> None:
    rows = ["epoch,step,train/loss,val/loss"]
    for step in range(0, 300, 5):
        rows += [f"0,{step},{4 / (1 + step / 50)},", f"0,{step},,1.0"]
    (tmp_path / "metrics.csv").write_text("\n".join([*rows, "0,300,nan,"]) + "\n")
    plot_loss(tmp_path / "metrics.csv", tmp_path / "loss.png")
    picture = pixels(tmp_path / "loss.png")
    assert picture.std() > 5
    assert share_of(picture, TRUE_COLOUR) > 0.002
    assert share_of(picture, HELDOUT_COLOUR) > 0.002
    (tmp_path / "metrics.csv").write_text("\n".join(row for row in rows if not row.endswith(",1.0")) + "\n")
    plot_loss(tmp_path / "metrics.csv", tmp_path / "loss.png")
    assert share_of(pixels(tmp_path / "loss.png"), HELDOUT_COLOUR) == 0, "there was no validation"


def test_loss_curve_of_a_single_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,1,2.5\n")
    plot_loss(tmp_path / "metrics.csv", tmp_path / "loss.png")
    assert pixels(tmp_path / "loss.png").std() > 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"no finite 'train/loss' among \[\]"),
        ("epoch,step,val/loss\n0,1,2\n", r"among \['val/loss'\]"),
        ("step,train/loss\n1,nan\n", "no finite"),
        ("step,train/loss\n1,much\n", "cannot be read"),
    ],
)
def test_loss_curve_names_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        plot_loss(tmp_path / "metrics.csv", tmp_path / "loss.png")
    with pytest.raises(DataError, match="cannot be read"):
        plot_loss(tmp_path / "none.csv", tmp_path / "loss.png")
