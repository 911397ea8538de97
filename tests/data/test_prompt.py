"""The template's text, against the original's written out longhand."""

import pytest

from macaw_lit.data.prompt import Prompt, Segment
from macaw_lit.errors import SampleError
from macaw_lit.types import MediaRef, Sample, Turn

HEADER = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def sample(*turns: tuple, **meta: object) -> Sample:
    return Sample(tuple(Turn(*turn) for turn in turns), "test/0", "test", meta)


def text(segments: list[Segment]) -> str:
    return "".join(segment.text + ("</s>" if segment.learn else "") for segment in segments)


def test_one_turn_is_the_original_text():
    segments = Prompt().segments(sample(("user", "Name a colour."), ("assistant", "Red.")))
    assert text(segments) == f"{HEADER}\n\n### Instruction:\nName a colour.\n\n### Response:\nRed.</s>"
    assert [segment.text for segment in segments if segment.learn] == ["\nRed."]


def test_an_input_has_its_own_header_and_heading():
    segments = Prompt().segments(sample(("user", "Add."), ("assistant", "3"), input="1 and 2"))
    assert text(segments) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2"
        "\n\n### Response:\n3</s>"
    )


def test_further_turns_repeat_the_headings_and_every_response_is_learned():
    turns = (("user", "A?"), ("assistant", "a"), ("user", "B?"), ("assistant", "b"))
    segments = Prompt().segments(sample(*turns, input="given once"))
    assert text(segments).count("given once") == 1
    assert text(segments).endswith(
        "### Response:\na</s>\n\n### Instruction:\nB?\n\n### Response:\nb</s>",
    )
    assert [segment.text for segment in segments if segment.learn] == ["\na", "\nb"]


def test_a_system_turn_replaces_the_header():
    segments = Prompt().segments(sample(("system", "Be brief."), ("user", "A?"), ("assistant", "a")))
    assert text(segments) == "Be brief.\n\n### Instruction:\nA?\n\n### Response:\na</s>"


@pytest.mark.parametrize("gold", [(), (("assistant", "secret"),)])
def test_prediction_ends_with_the_response_heading(gold: tuple):
    segments = Prompt().segments(sample(("user", "A?"), ("assistant", "a"), ("user", "B?"), *gold), predict=True)
    assert text(segments).endswith("### Response:\na</s>\n\n### Instruction:\nB?\n\n### Response:")
    assert "secret" not in text(segments)


def test_a_spoken_question_has_headings_and_no_text():
    turn = Turn("user", "", (MediaRef("audio", "q.wav"),), spoken=True)
    segments = Prompt().segments(Sample((turn, Turn("assistant", "Red.")), "test/0", "test"))
    assert text(segments) == f"{HEADER}\n\n### Instruction:\n\n\n### Response:\nRed.</s>"


def test_media_stand_before_the_text_of_their_turn():
    ref = MediaRef("image", "a.jpg")
    segments = Prompt().segments(sample(("user", "A?", (ref,)), ("assistant", "a")))
    assert [segment.text for segment in segments if segment.media] == ["A?\n\n### Response:"]


@pytest.mark.parametrize(
    ("cause", "predict", "turns"),
    [
        ("turn_order", False, ()),
        ("turn_order", False, (("assistant", "a"),)),
        ("turn_order", False, (("user", "A?"), ("user", "B?"), ("assistant", "a"))),
        ("turn_order", False, (("user", "A?"), ("system", "no"), ("assistant", "a"))),
        ("turn_order", True, (("system", "Be brief."),)),
        ("turn_order", True, (("assistant", "a"),)),
        ("no_response", False, (("user", "A?"),)),
        ("no_response", False, (("user", "A?"), ("assistant", "a"), ("user", "B?"))),
        ("empty_instruction", True, (("user", " \n"),)),
        ("empty_instruction", False, (("user", ""), ("assistant", "a"))),
    ],
)
def test_dialogues_that_cannot_be_used_name_their_cause(cause: str, predict: bool, turns: tuple):
    with pytest.raises(SampleError, match="test/0") as caught:
        Prompt().segments(sample(*turns), predict)
    assert caught.value.cause == cause
