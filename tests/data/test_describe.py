import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from macaw_lit.data import describe as module
from macaw_lit.data.describe import describe, main, sniff
from macaw_lit.errors import DataError
from macaw_lit.types import Sample

CSV = 'id,subject,script,descriptions\nAB12C,Q,"A script, quoted.",A person sits.;\n'
ASK = {"instruction": "What?", "response": "That."}
TURNS = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hi."}]
CHAT = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]
CAPTIONS = [{"image_id": 9, "caption": "A."}]
RAW = [{"raw": "A."}]
FILES: dict[str, tuple[str, str, Any]] = {
    "alpaca": ("alpaca", "a.json", [{"instruction": "Hi?", "input": "", "output": "Hi."}]),
    "alpaca_lines": ("alpaca", "a.jsonl", [{"instruction": "Hi?", "response": "Hi.", "input": None}]),
    "coco": ("coco", "a.json", {"images": [{"id": 9, "file_name": "9.jpg"}], "annotations": CAPTIONS}),
    "sounds": ("coco", "a.json", {"images": [{"id": 9, "file_name": "9.wav"}], "annotations": CAPTIONS}),
    "karpathy": ("karpathy", "a.json", {"images": [{"filename": "9.jpg", "split": "train", "sentences": RAW}]}),
    "vqa": ("vqa", "questions.json", {"questions": [{"question_id": 1, "image_id": 9, "question": "What?"}]}),
    "charades": ("charades", "a.csv", CSV),
    "dstc": ("avsd", "a.json", {"dialogs": [{"image_id": "AB12C", "dialog": [{"question": "a?", "answer": "b"}]}]}),
    "avsd": ("avsd", "a.json", {"AB12C": {"data": [{"question": "a?", "answer": "b"}], "summary": None}}),
    "macaw_coco": ("macaw", "a.json", {"data": [{"id": "COCO_train2014_000000000009.jpg", **ASK}]}),
    "macaw_avsd": ("macaw", "a.json", {"data": [{"id": "AB12C", **ASK}]}),
    "macaw_paths": ("macaw", "a.json", [{"image": "None", "video": "None", "audio": "9.wav", **ASK}]),
    "llava": ("conversations", "a.json", [{"id": "x", "image": "9.jpg", "conversations": TURNS}]),
    "sharegpt": ("conversations", "a.jsonl", [{"conversations": TURNS}]),
    "messages": ("messages", "a.jsonl", [{"messages": CHAT}]),
}  # fmt: skip
KINDS = {"macaw_coco": "image", "macaw_avsd": "video", "sounds": "audio", "coco": "image"}


def packed(name: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(map(json.dumps, content)) if ".jsonl" in name else json.dumps(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("9.jpg", "COCO_train2014_000000000009.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for name in ("9.wav", "AB12C.mp4"):
        (tmp_path / name).write_bytes(b"no sound in here")
    answers = {"annotations": [{"question_id": 1, "multiple_choice_answer": "red", "answers": []}]}
    (tmp_path / "annotations.json").write_text(json.dumps(answers))
    return tmp_path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["plain", "marked", "gzip"])
def test_every_format_is_known_and_read_whatever_it_is_packed_in(root: Path, name: str, form: str) -> None:
    expected, file, content = FILES[name]
    text = packed(file, content)
    path = root / (file + ".gz" if form == "gzip" else file)
    path.write_bytes(
        gzip.compress(text.encode()) if form == "gzip" else text.encode("utf-8-sig" if form == "marked" else "utf-8")
    )
    found = describe(path)
    assert (found.format, found.usable, found.rows, found.turns) == (expected, 1, 1, 1), found
    assert found.reader["_target_"] == f"macaw_lit.data.sources.{expected}.read"
    assert found.reader.get("kind") == KINDS.get(name, "video" if name == "macaw_paths" else None)


@pytest.mark.parametrize("name", FILES)
def test_no_two_readers_claim_a_file(name: str) -> None:
    expected, file, content = FILES[name]
    parsed = [{"id": "AB12C", "script": "x", "descriptions": "y"}] if file.endswith("csv") else content
    assert [reader for reader, found in module._readers() if found.sniff(parsed) is not None] == [expected]


def test_the_reader_it_names_reads_the_file(root: Path) -> None:
    _, file, content = FILES["macaw_coco"]
    (root / file).write_text(json.dumps(content))
    (sample,) = instantiate(describe(root / file, [root]).reader)
    assert isinstance(sample, Sample)
    assert sample.turns[0].media[0].path == root / "COCO_train2014_000000000009.jpg"


def test_rejections_are_counted_with_their_first_place(root: Path) -> None:
    rows = [{"id": "9.jpg", **ASK}, {"id": "none.jpg", **ASK}, {"id": "../9.jpg", **ASK}, {"id": "no.jpg", **ASK}]
    (root / "a.json").write_text(json.dumps({"data": rows}))
    found = describe(root / "a.json", root)
    assert (found.usable, found.rows, found.media) == (1, 4, {"image": 1})
    assert found.rejected == {"media_missing": 2, "media_outside": 1}
    assert found.first["media_missing"].startswith(f"{root / 'a.json'}[1]: 'none.jpg'")
    with pytest.raises(DataError, match=r"\[1\]: media_missing"):
        describe(root / "a.json", root, strict=True)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"a": 1}', '[{"a": 1}]', "7", '"x"', "[[]]", "null", '{"images": [{"id": 1}]}']
)
def test_other_files_are_refused_with_the_formats_there_are(root: Path, content: str) -> None:
    (root / "a.json").write_text(content)
    with pytest.raises(
        DataError, match="alpaca, avsd, charades, coco, conversations, karpathy, macaw, messages, packed, vqa"
    ):
        sniff(root / "a.json")


def test_the_command(root: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    _, file, content = FILES["llava"]
    (root / file).write_text(json.dumps([*content, {"conversations": []}]))
    code, out, _ = call(main, root, f"path={file}", "format=json")
    found = json.loads(out)
    assert code == 0
    assert (found["format"], found["rows"], found["usable"], found["rejected"]) == (
        "conversations",
        2,
        1,
        {"missing_key": 1},
    )
    code, out, _ = call(main, root, f"path={file}", f"media_root=[{root},{root}]")
    assert code == 0
    assert "a.json: conversations, 2 rows" in out
    assert "1 image" in out
    for words, said in (
        ((f"path={file}", "strict=true"), "a.json[1]: missing_key"),
        ((f"path={file}", "format=xml"), "expected table or json"),
        (("path=none.json",), "no such file"),
        ((), "path must be given"),
        ((f"path={file}", "media_root=none"), "no such folder"),
    ):
        code, out, err = call(main, root, *words)
        assert (code, out) == (1, "")
        assert said in err
        assert err.count("\n") == 1


KEYS = sorted({key for _, _, content in FILES.values() for row in content if isinstance(row, dict) for key in row})
KEYS += ["images", "annotations", "questions", "dialogs", "data", "sentences", "file_name", "caption", "AB12C"]
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(KEYS)
JUNK = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
)
CUT = st.sampled_from(sorted(FILES)).flatmap(
    lambda name: st.tuples(st.just(FILES[name][1]), st.just(packed(*FILES[name][1:])).flatmap(
        lambda text: st.tuples(st.integers(0, len(text)), st.binary(max_size=3)).map(
            lambda cut: text.encode()[: cut[0]] + cut[1] + text.encode()[cut[0] + 1 :])))
)  # fmt: skip
NAMES = st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.json.gz"])
ANY = st.tuples(NAMES, JUNK.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CUT | ANY)
def test_any_broken_file_is_one_clear_line_or_counted_rejections(root: Path, given_file: tuple[str, bytes]) -> None:
    name, content = given_file
    (root / name).write_bytes(content)
    refused = ""
    try:
        found = describe(root / name)
    except DataError as error:
        refused = str(error)
    if refused:
        assert name in refused
        assert "\n" not in refused
    else:
        assert found.rows == found.usable + sum(found.rejected.values())
        assert json.loads(json.dumps(found.as_json()))["rows"] == found.rows
