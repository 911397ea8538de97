"""Dialogues of LLaVA, ShareGPT, OpenAI and Hugging Face: every turn, every medium, at the turn it belongs to."""

import base64
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from macaw_lit.data.media import name_of
from macaw_lit.data.prompt import Prompt
from macaw_lit.data.sources import conversations, embedded, messages
from macaw_lit.data.sources.rows import CAUSES
from macaw_lit.types import Bytes, MediaRef, Rejection, Sample


@pytest.fixture
def root(tmp_path: Path, clip: Callable[..., Path]) -> Path:
    for name in ("a/x1.jpg", "x2.png", "x3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    clip(tmp_path / "v.mp4", [np.zeros((48, 64, 3), np.uint8)] * 4, sound=np.zeros(6400, np.float32))
    soundfile.write(tmp_path / "s.wav", np.zeros(100, np.float32), 16_000)
    return tmp_path


def turn(who: str, text: Any) -> dict[str, Any]:
    return {"from": who, "value": text}


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ANSWER = turn("gpt", "A cup.")
REPLY = say("assistant", "A cup.")


def llava(root: Path, *turns: Any, **columns: Any) -> Sample | Rejection:
    path = root / "llava.json"
    path.write_text(json.dumps([{"id": "x", "conversations": list(turns), **columns}]))
    (found,) = conversations.read(path, root)
    return found


def chat(root: Path, *turns: Any, **columns: Any) -> Sample | Rejection:
    path = root / "chat.jsonl"
    path.write_text(json.dumps({"messages": list(turns), **columns}) + "\n")
    (found,) = messages.read(path, root)
    return found


def shown(found: Sample | Rejection) -> list[tuple[str, str, list[str]]]:
    """Per turn: role, text, and its media as `kind name`."""
    assert isinstance(found, Sample), found
    return [(turn.role, turn.text, [f"{ref.kind} {Path(ref.path).name}" for ref in turn.media]) for turn in found.turns]


@pytest.mark.parametrize("text", ["<image>\nWhat is this?", "What is this?\n<image>", "What <image>is this?"])
def test_a_picture_stands_where_its_marker_was(root: Path, text: str) -> None:
    found = llava(root, turn("human", text), ANSWER, image="a/x1.jpg", model="m")
    assert shown(found) == [("user", "What is this?", ["image x1.jpg"]), ("assistant", "A cup.", [])]
    assert isinstance(found, Sample)
    assert (found.uid, found.source) == ("conversations/x/0", "conversations")
    assert found.meta == {"id": "x", "image": "a/x1.jpg", "model": "m"}


def test_several_turns_stay_several_turns(root: Path) -> None:
    turns = [
        turn("system", "Be short."),
        turn("human", "<image>\nFirst?"),
        turn("gpt", "One."),
        turn("user", "And <image>\n<video>?"),
        turn("assistant", "<image> two."),
        turn("USER", "Last?"),
    ]
    found = llava(root, *turns, image=["a/x1.jpg", "x2.png"], videos="v.mp4")
    assert shown(found) == [
        ("system", "Be short.", []),
        ("user", "First?", ["image x1.jpg"]),
        ("assistant", "One.", []),
        ("user", "And \n?", ["image x2.png", "video v.mp4", "audio v.mp4"]),
        ("assistant", "<image> two.", []),
    ]
    assert isinstance(found, Sample)
    assert found.meta["turns_left_out"] == 1
    learned = [segment.text.strip() for segment in Prompt().segments(found) if segment.learn]
    assert learned == ["One.", "<image> two."]


def test_media_without_a_marker_belong_to_the_first_question(root: Path) -> None:
    turns = [turn("human", "First?"), ANSWER, turn("human", "<image> Second?"), ANSWER]
    found = llava(root, *turns, images=["a/x1.jpg", {"path": "x2.png"}], audio="s.wav")
    assert [media for _, _, media in shown(found)] == [["image x2.png", "audio s.wav"], [], ["image x1.jpg"], []]


def test_a_sound_of_its_own_stands_for_the_videos(root: Path) -> None:
    found = llava(root, turn("human", "<video>\n<audio>\nWhat?"), ANSWER, video="v.mp4", audio="s.wav")
    assert shown(found)[0] == ("user", "What?", ["video v.mp4", "audio s.wav"])


def test_a_system_column_comes_first(root: Path) -> None:
    assert shown(llava(root, turn("human", "Hi?"), ANSWER, system="Be short."))[0] == ("system", "Be short.", [])


def test_markers_are_text_where_the_row_has_no_such_medium(root: Path) -> None:
    question = "Why does <video> not play?\n<video>\n<source src='a'>\n</video>\n"
    assert shown(llava(root, turn("human", question), ANSWER))[0][1] == question.strip()


@pytest.mark.parametrize(
    ("turns", "columns", "cause"),
    [
        ([turn("human", "<image>\n<image>\nWhat?"), ANSWER], {"image": "a/x1.jpg"}, "media_count"),
        ([turn("human", "<image>\nWhat?"), ANSWER], {}, "media_count"),
        ([turn("human", "What?\n<video>"), ANSWER], {"image": "a/x1.jpg"}, "media_count"),
        ([turn("human", "<image>\n"), ANSWER], {"image": "a/x1.jpg"}, "empty_instruction"),
        ([turn("human", "What?"), turn("gpt", " ")], {}, "empty_response"),
        ([turn("human", "What?"), turn("tool", "x"), ANSWER], {}, "unknown_role"),
        ([ANSWER, turn("human", "What?")], {}, "turn_order"),
        ([turn("human", "What?"), turn("human", "What?"), ANSWER], {}, "turn_order"),
        ([turn("human", "What?"), ANSWER, ANSWER], {}, "turn_order"),
        ([turn("human", "What?")], {}, "turn_order"),
        ([turn("system", "What?")], {}, "turn_order"),
        ([], {}, "missing_key"),
        ([turn("human", None), ANSWER], {}, "missing_key"),
        ([{"value": "x"}, ANSWER], {}, "missing_key"),
        (["What?", ANSWER], {}, "not_an_object"),
        ([turn("human", "What?"), ANSWER], {"image": "none.jpg"}, "media_missing"),
        ([turn("human", "What?"), ANSWER], {"image": "../a/x1.jpg"}, "media_outside"),
        ([turn("human", "What?"), ANSWER], {"image": "https://example.org/x1.jpg"}, "media_remote"),
        ([turn("human", "What?"), ANSWER], {"image": "data:image/png;base64,AAA"}, "media_embedded"),
        ([turn("human", "What?"), ANSWER], {"image": "data:image/png;base64,"}, "media_embedded"),
        ([turn("human", "What?"), ANSWER], {"image": "data:image/svg+xml,<svg/>"}, "media_embedded"),
        ([turn("human", "What?"), ANSWER], {"image": "data:" + "A" * 100}, "media_embedded"),
        ([turn("human", "What?"), ANSWER], {"image": 7}, "missing_key"),
        ([turn("human", "What?"), ANSWER], {"image": {"bytes": "x"}}, "missing_key"),
    ],
)
def test_bad_rows_are_rejected_by_cause(root: Path, turns: list[Any], columns: dict[str, Any], cause: str) -> None:
    found = llava(root, *turns, **columns)
    assert isinstance(found, Rejection)
    assert (found.cause, found.locator) == (cause, f"{root / 'llava.json'}[0]")
    assert found.detail


def test_parts_of_every_dialect(root: Path) -> None:
    parts = [
        {"type": "image", "image": "a/x1.jpg"},
        {"type": "text", "text": "What is this,"},
        {"type": "image_url", "image_url": {"url": (root / "x2.png").as_uri(), "detail": "low"}},
        {"type": "video_url", "video_url": "v.mp4"},
        {"type": "audio", "path": "s.wav"},
        {"type": "image", "url": str(root / "x3.png")},
        {"type": "text", "text": "<image> and that?"},
    ]
    found = chat(root, say("user", parts), say("assistant", [{"type": "text", "text": "A cup."}]))
    media = ["image x1.jpg", "image x2.png", "video v.mp4", "audio v.mp4", "audio s.wav", "image x3.png"]
    assert shown(found) == [("user", "What is this,\n<image> and that?", media), ("assistant", "A cup.", [])]
    assert isinstance(found, Sample)
    assert found.uid == "messages/chat/0"


def test_a_sound_without_a_text_is_a_spoken_question(root: Path) -> None:
    first = say("user", [{"type": "image", "path": "x2.png"}, {"type": "audio", "path": "s.wav"}])
    found = chat(root, first, REPLY, say("user", [{"type": "audio"}]), REPLY, audios=["s.wav"])
    assert isinstance(found, Sample)
    assert [(turn.text, turn.spoken, len(turn.media)) for turn in found.turns[::2]] == [("", True, 2), ("", True, 1)]
    for parts in (
        [{"type": "audio", "path": "s.wav"}, {"type": "text", "text": ""}],
        [{"type": "video", "path": "v.mp4"}],
    ):
        refused = chat(root, say("user", parts), REPLY)
        assert isinstance(refused, Rejection)
        assert refused.cause == "empty_instruction"


def test_empty_parts_take_the_media_of_the_columns_in_order(root: Path) -> None:
    first = say("user", [{"type": "image"}, {"type": "text", "text": "This?"}])
    second = say("user", [{"type": "text", "text": "That?"}, {"type": "image"}])
    found = chat(root, first, REPLY, second, REPLY, images=["a/x1.jpg", "x2.png"])
    assert [media for _, _, media in shown(found)] == [["image x1.jpg"], [], ["image x2.png"], []]
    found = chat(root, first, REPLY, second, REPLY, images=["a/x1.jpg"])
    assert isinstance(found, Rejection)
    assert found.cause == "media_count"


def test_plain_contents_may_have_markers(root: Path) -> None:
    found = chat(root, say("user", "<image>What?"), REPLY, images=["a/x1.jpg"])
    assert shown(found)[0] == ("user", "What?", ["image x1.jpg"])


@pytest.mark.parametrize(
    ("parts", "cause"),
    [
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}], "media_remote"),
        ([{"type": "image_url", "image_url": {"url": "file://host/x.png"}}], "media_remote"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "media_outside"),
        ([{"type": "image_url", "image_url": {"url": "file:///%2e%2e/x.png"}}], "media_outside"),
        ([{"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}], "media_embedded"),
        ([{"type": "input_audio", "input_audio": {"format": "wav"}}], "missing_key"),
        ([{"type": "input_audio", "input_audio": "AAAA"}], "not_an_object"),
        ([{"type": "file", "file": {}}], "unknown_part"),
        ([{"text": "x"}], "missing_key"),
        (["x"], "not_an_object"),
        ([{"type": "text", "text": " "}], "empty_instruction"),
        (None, "missing_key"),
        (7, "missing_key"),
    ],
)
def test_bad_parts_are_rejected_by_cause(root: Path, parts: Any, cause: str) -> None:
    found = chat(root, say("user", parts), REPLY)
    assert isinstance(found, Rejection), found
    assert found.cause == cause


def test_broken_lines_and_rows_leave_the_others(root: Path) -> None:
    good = json.dumps({"messages": [say("user", "What?"), REPLY]})
    (root / "chat.jsonl").write_text(
        "\n".join([good, "{", '{"messages": {}}', "[]", '{"text": "x"}', good]), "utf-8-sig"
    )
    found = list(messages.read(root / "chat.jsonl", root))
    assert [row.cause if isinstance(row, Rejection) else row.uid for row in found] == [
        "messages/chat/0",
        "not_json",
        "missing_key",
        "not_an_object",
        "missing_key",
        "messages/chat/5",
    ]
    assert isinstance(found[1], Rejection)
    assert found[1].locator == f"{root / 'chat.jsonl'}:2"


WORDS = st.sampled_from(
    ["human", "gpt", "user", "text", "image", "<image>", "<image>\nx", "x2.png", "..", "data:", "a://b"]
)
LEAF = st.none() | st.booleans() | st.integers() | WORDS | st.text(max_size=6)
JUNK = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)
KEYS = ("from", "role", "value", "content", "type", "text", "image", "image_url")
PART = JUNK | st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JUNK))
MESSAGE = JUNK | st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JUNK | st.lists(PART, max_size=3)))
COLUMNS = ("id", "image", "images", "video", "audio", "system")
ROW = JUNK | st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(COLUMNS, JUNK)
    | dict.fromkeys(("conversations", "messages"), JUNK | st.lists(MESSAGE, max_size=4)),
)


@pytest.mark.parametrize("reader", [conversations, messages])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=4))
def test_any_junk_is_a_sample_or_a_rejection(root: Path, reader: Any, rows: list[Any]) -> None:
    path = root / "junk.json"
    path.write_text(json.dumps(rows))
    found: Iterator[Sample | Rejection] = reader.read(path, root)
    counted = 0
    for row in found:
        counted += 1
        if isinstance(row, Sample):
            assert Prompt().segments(row)
        else:
            assert row.cause in CAUSES
    assert counted == len(rows)


def uri(path: Path, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_media_that_a_row_itself_holds(root: Path) -> None:
    sound = base64.b64encode((root / "s.wav").read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": uri(root / "x2.png", "image/png")}},
        {"type": "video_url", "video_url": {"url": uri(root / "v.mp4", "video/mp4")}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "text", "text": "What?"},
    ]
    found = chat(root, say("user", parts), REPLY)
    assert isinstance(found, Sample)
    media = found.turns[0].media
    assert [ref.kind for ref in media] == ["image", "video", "audio", "audio"], "the video brings its sound"
    contents = [ref.path.data for ref in media if isinstance(ref.path, Bytes)]
    files = [(root / name).read_bytes() for name in ("x2.png", "v.mp4", "v.mp4", "s.wav")]
    assert contents == files
    assert [name_of(ref.path).rpartition(".")[2] for ref in media] == ["png", "mp4", "mp4", "wav"]


def test_a_column_that_holds_the_medium_is_not_kept_twice(root: Path) -> None:
    found = llava(
        root, turn("human", "<image>What?"), ANSWER, image=uri(root / "x2.png", "image/png"), id="7", note="n"
    )
    assert isinstance(found, Sample)
    assert found.turns[0].media == (MediaRef("image", Bytes((root / "x2.png").read_bytes(), "image in the row.png")),)
    assert found.meta == {"id": "7", "note": "n"}


def test_a_sound_may_be_given_as_a_uri(root: Path) -> None:
    part = {"type": "input_audio", "input_audio": {"data": uri(root / "s.wav", "audio/wav"), "format": "wav"}}
    found = chat(root, say("user", [part, {"type": "text", "text": "What?"}]), REPLY)
    assert isinstance(found, Sample)
    (ref,) = found.turns[0].media
    assert ref.kind == "audio"
    assert isinstance(ref.path, Bytes)
    assert ref.path.data == (root / "s.wav").read_bytes()


@pytest.mark.parametrize("limit", [6, 7, 10])
def test_what_a_row_may_hold_is_limited(root: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(embedded, "MAX_BYTES", limit)
    for size, cause in ((limit, None), (limit + 1, "media_embedded")):
        text = base64.encodebytes(bytes(size)).decode()
        found = llava(root, turn("human", "What?"), ANSWER, image=f"data:image/png;base64,{text}")
        assert getattr(found, "cause", None) == cause


@pytest.mark.parametrize("words", ["", "AA "])
def test_white_space_takes_no_memory(words: str) -> None:
    uri = f"data:image/png;base64,AAAA{words * 2**20}{' ' * 2**20}"
    tracemalloc.start()
    (ref,) = embedded.embedded_refs("image", uri)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(ref.path, Bytes)
    assert peak < 5 * len(uri), "the text twice, and its bytes"
