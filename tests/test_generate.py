"""The command as a user meets it, on the demo's captions and without any server."""

import json

import pytest
from PIL import Image

from macaw_lit.generate import OVER_BUDGET, main


@pytest.fixture
def words(tmp_path):
    """Two pictures with captions, and what is typed to generate from them."""
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "2.jpg")
    names = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3)]
    texts = ["Two objects on a white background: a red circle at the top left and a blue cross at the top right."]
    rows = [{"image_id": n, "caption": text} for n, text in enumerate([*texts, "A dog runs on grass.", "Gone."], 1)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": names, "annotations": rows}))
    return ["source=coco", "path=captions.json", "media_root=.", "target=out", "backend=template"]


def test_run_build_and_review_without_a_server(call, tmp_path, words):
    code, out, err = call(main, tmp_path, *words)
    assert (code, err) == (0, "captions.json: rejected 1 media_missing\n")
    assert "2 media settled, 0 before, 0 left; faults met: none" in out
    files = ("journal.jsonl", "macaw.json", "llava.json", "messages.jsonl", "statistics.json", "statistics.png")
    names = {*files, "DATASET_CARD.md"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names - {"statistics.png"}}
    code, out, _ = call(main, tmp_path, *words)
    assert (code, "0 media settled, 2 before" in out) == (0, True)
    code, _, _ = call(main, tmp_path, *words, "action=build")
    assert code == 0
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in before}
    code, out, _ = call(main, tmp_path, *words, "action=review", "sheet=sheet.csv")
    assert (code, out.startswith("sheet.csv: ")) == (0, True)
    code, _, _ = call(main, tmp_path, *words, "action=build", "sheet=sheet.csv")
    assert code == 0


def test_the_budget_ends_a_run_with_its_own_code_and_keeps_what_there_is(call, tmp_path, words):
    code, _, err = call(main, tmp_path, *words, "budget.max_requests=1", "limits.concurrency=1")
    assert code == OVER_BUDGET
    assert "stopped: 1 of max_requests=1 spent" in err
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["answers"]["answered"] == 1
    code, out, _ = call(main, tmp_path, *words)
    assert (code, "1 media settled, 1 before" in out) == (0, True)


def test_a_batch_goes_out_and_comes_back_once(call, tmp_path, words):
    code, out, _ = call(main, tmp_path, *words, "action=estimate")
    assert (code, out.startswith("2 requests, at most ")) == (0, True)
    code, out, _ = call(main, tmp_path, *words, "action=batch_export", "batch=batch.jsonl")
    assert (code, out) == (0, "batch.jsonl: 2 requests\n")
    asked = [json.loads(line) for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    assert {(row["method"], row["url"]) for row in asked} == {("POST", "/v1/chat/completions")}
    pairs = {"pairs": [{"instruction": f"What is thing {n} of {9 * n}?", "response": f"It is {n}."} for n in range(10)]}
    choice = {"message": {"content": json.dumps(pairs)}, "finish_reason": "stop"}
    body = {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
    good = {"custom_id": asked[0]["custom_id"], "response": {"status_code": 200, "body": body}}
    bad = {"custom_id": asked[1]["custom_id"], "response": {"status_code": 500, "body": {"error": "x"}}}
    rows = [good, good, bad, {"custom_id": "stranger"}, 7]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    code, out, _ = call(main, tmp_path, *words, "action=batch_import", "batch=answers.jsonl")
    assert code == 0
    assert out.splitlines()[0] == "2 malformed, 1 answered, 1 known, 1 failed, 1 unknown"
    spent = json.loads((tmp_path / "out" / "statistics.json").read_text())["spent"]
    assert spent == {"requests": 2, "tokens": 12, "usd": 0}


@pytest.mark.parametrize("sheet", ["uid,verdict\na,accept\n", "uid,verdict,corrected_response\na,maybe,\n"])
def test_a_damaged_sheet_is_refused_before_anything_is_asked(call, tmp_path, words, sheet):
    (tmp_path / "sheet.csv").write_text(sheet)
    code, _, err = call(main, tmp_path, *words, "sheet=sheet.csv")
    assert (code, "sheet.csv" in err) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("near_duplicate=abc", "near_duplicate=abc: expected a number or null"),
        ("least_grounded=abc", "least_grounded=abc: expected a number or null"),
        ("alike=abc", "alike=abc: expected a number or null"),
        ("most_repeats=1.5", "most_repeats=1.5: expected a whole number or null"),
        ("media=abc", "media=abc: expected a whole number or null"),
        ("limits.attempts=abc", "limits.attempts=abc: expected a whole number"),
        ("budget.max_usd=abc", "budget.max_usd=abc: expected a number or null"),
        ("action=dance", "action=dance: expected one of run, build, estimate"),
        ("backend=crystal", "backend=crystal: expected chat or template"),
        ("source=flickr", "source=flickr kind=image: expected one of coco"),
        ("path=none.json", "none.json: no such file"),
        ("budget.max_usd=1.0", "budget.max_usd needs price.input and price.output"),
        ("action=review", "action=review needs a file: add sheet=…"),
        ("strict=true", "captions.json[2]: media_missing"),
        ("filters=[lenght]", "'lenght' is unknown"),
        ("alike=0.1", "alike=0.1: expected a share from 0.6 to 1"),
        ("least_grounded=2.0", "least_grounded=2.0: expected a share above 0"),
        ("target=captions.json", "captions.json/journal.jsonl: cannot be written"),
        ("temprature=1.0", "temprature: no such key; did you mean temperature?"),
    ],
)
def test_mistakes_are_answered_in_one_line(call, tmp_path, words, word, message):
    code, _, err = call(main, tmp_path, *words, word)
    last = err.splitlines()[-1]
    assert code == 1
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("filters=[lenght]", "'lenght' is unknown"),
        ("formats=[mp3]", "'mp3' is unknown"),
        ("alike=0.1", "alike=0.1: expected a share from 0.6 to 1"),
        ("near_duplicate=7.0", "near_duplicate=7.0: expected a share above 0"),
        ("most_repeats=0", "most_repeats=0: expected a whole number of at least 1"),
        ("sheet=none.csv", "sheet=none.csv: no such file"),
    ],
)
def test_what_the_end_of_a_run_would_refuse_is_refused_before_anything_is_asked(call, tmp_path, words, word, message):
    code, _, err = call(main, tmp_path, *words, word)
    assert (code, len(err.splitlines())) == (1, 2), "what was rejected of the captions, and the error"
    assert message in err
    assert not (tmp_path / "out").exists(), "nothing was journalled"


def test_the_key_is_asked_for_before_anything_is_sent(call, tmp_path, words, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, _, err = call(main, tmp_path, *words, "backend=chat")
    assert code == 1
    assert "error: OPENAI_API_KEY is not set" in err
