"""The verdict at its borders, the JSON, and the table of question types."""

import json
from pathlib import Path

import pytest

from macaw_lit.errors import DataError
from macaw_lit.evaluation.results import QuestionType, Report, TypeResult, read_types

VIDEO = QuestionType(("video",), True, 0.25)


def result(hits: int = 95, video: tuple[int, int] = (25, 25), audio: tuple[int, int] = (95, 95)) -> TypeResult:
    return TypeResult(VIDEO, 100, hits, {"audio": audio[0], "video": video[0]}, {"audio": audio[1], "video": video[1]})


@pytest.mark.parametrize(
    ("measured", "reasons"),
    [
        (result(), ()),
        (result(90, audio=(87, 93)), ()),
        (result(89, audio=(89, 89)), ("accuracy 0.89 < 0.90",)),
        (result(video=(32, 18)), ()),
        (result(video=(33, 25)), ("without video 0.33, chance 0.25",)),
        (result(video=(25, 17)), ("shuffled video 0.17, chance 0.25",)),
        (result(audio=(91, 95)), ("without audio 0.91, not needed, true 0.95",)),
        (result(audio=(95, 99)), ("shuffled audio 0.99, not needed, true 0.95",)),
        (TypeResult(VIDEO, 100, 95), ("no video to remove", "too few different videos to shuffle")),
        (TypeResult(VIDEO, 0, 0), ("no held-out items",)),
    ],
)
def test_reasons_at_the_borders(measured: TypeResult, reasons: tuple[str, ...]) -> None:
    assert measured.reasons == reasons
    assert measured.passed is not bool(reasons)


def test_only_gating_types_decide() -> None:
    stretch = TypeResult(QuestionType((), False, 0.0), 100, 5)
    assert Report({"video.first": result(), "text.copy": stretch}).passed
    assert not Report({"video.first": result(80), "text.copy": stretch}).passed
    assert not Report({"text.copy": stretch}).passed
    assert not Report({}).passed


def test_json_has_the_documented_fields_and_survives_a_file() -> None:
    report = Report({"video.first": result(), "text.last": TypeResult(QuestionType((), True, 0.0), 3, 2)})
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["video.first"] == {
        "media": ["video"],
        "gating": True,
        "n": 100,
        "chance": 0.25,
        "true": 0.95,
        "true_ci": [0.8882, 0.9785],
        "absent": {"audio": 0.95, "video": 0.25},
        "absent_ci": {"audio": [0.8882, 0.9785], "video": [0.1755, 0.343]},
        "shuffled": {"audio": 0.95, "video": 0.25},
        "shuffled_ci": {"audio": [0.8882, 0.9785], "video": [0.1755, 0.343]},
        "verdict": "pass",
        "reasons": [],
    }
    text = content["text.last"]
    assert (text["media"], text["true"], text["absent"], text["shuffled"]) == ([], 0.6667, {}, {})
    assert (text["verdict"], text["reasons"]) == ("fail", ["accuracy 0.67 < 0.90"])


def test_read_types(tmp_path: Path) -> None:
    path = tmp_path / "question_types.json"
    path.write_text('{"av.both": {"media": ["video", "audio"], "gating": true, "chance": 0.25, "note": 1}, '
                    '"text.last": {"media": [], "gating": false, "chance": 0}}')  # fmt: skip
    assert read_types(path) == {
        "av.both": QuestionType(("video", "audio"), True, 0.25),
        "text.last": QuestionType((), False, 0.0),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "holds a list"),
        (b'{"t": 3}', "type 't' is 3"),
        (b'{"t": {"media": "image", "gating": true, "chance": 0.5}}', "type 't' is"),
        (b'{"t": {"media": [], "gating": true, "chance": 1.5}}', "chance from 0 to 1"),
        (b'{"t": {"media": [], "chance": 0.5}}', "type 't' is"),
    ],
)
def test_read_types_names_the_fault(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "question_types.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_types(path)
    assert "\n" not in str(caught.value)


def test_read_types_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_types(tmp_path / "none.json")
