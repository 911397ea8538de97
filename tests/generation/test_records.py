import json

import pytest
from PIL import Image

from macaw_lit.errors import ConfigError
from macaw_lit.generation.records import Record, choose, read_records
from macaw_lit.types import Rejection


@pytest.fixture
def folder(tmp_path, clip):
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "videos").mkdir()
    import numpy as np

    clip(tmp_path / "videos" / "AB12C.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3)
    return tmp_path


def test_captions_of_a_picture_are_gathered_once_each(folder):
    path = folder / "captions.json"
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3)]
    texts = [(1, "A dog. "), (2, "A cat."), (1, "a dog."), (1, "It\n runs."), (3, "Gone."), (1, " ")]
    rows = [{"id": n, "image_id": item, "caption": text} for n, (item, text) in enumerate(texts)]
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    found = list(read_records("coco", path, folder))
    assert [row.cause for row in found if isinstance(row, Rejection)] == [
        "duplicate",
        "media_missing",
        "empty_response",
    ]
    assert [row for row in found if isinstance(row, Record)] == [
        Record("1.jpg", "image", "coco", ("A dog.", "It runs."), refs=("coco/1/0", "coco/1/3")),
        Record("2.jpg", "image", "coco", ("A cat.",), refs=("coco/2/1",)),
    ]


def test_charades_gives_descriptions_and_script_and_avsd_its_fields_and_dialogue(folder):
    path = folder / "charades.csv"
    path.write_text('id,script,descriptions\nAB12C,"He sits, then ""laughs"".",He sits.;He laughs.\n')
    (record,) = read_records("charades", path, folder, "video")
    assert (record.id, record.kind) == ("videos/AB12C", "video")
    assert record.texts == ("He sits.", 'He sits, then "laughs".', "He laughs.")
    path = folder / "avsd.json"
    dialog = [{"question": "is it loud ?", "answer": "no ."}]
    row = {"image_id": "AB12C", "caption": "he sits", "summary": "he laughs", "dialog": dialog}
    path.write_text(json.dumps({"dialogs": [row]}))
    (record,) = read_records("avsd", path, folder, "video")
    assert record.texts == ("he sits", "he laughs", "is it loud ? no .")


def test_plain_rows_may_have_a_transcript(folder, tone):
    sound = tone(0.5)
    rows = [
        {"id": sound.name, "captions": ["A tone.", "A beep."], "transcript": "Hello there."},
        {"id": sound.name.replace("0.5", "0.6"), "caption": "x"},
        {"id": "../x.wav", "caption": "x"},
        {"caption": "x"},
        7,
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{")
    found = list(read_records("captions", path, folder, "audio"))
    assert found[-1] == Record(sound.name, "audio", "captions", ("A tone.", "A beep."), "Hello there.", found[-1].refs)
    causes = ["media_missing", "media_outside", "missing_key", "not_an_object", "not_json"]
    assert [row.cause for row in found[:-1]] == causes
    path.write_text(json.dumps({"id": sound.name, "transcript": "Hello."}))
    (record,) = read_records("captions", folder / "rows.jsonl", folder, "audio")
    assert (record.texts, record.transcript) == ((), "Hello.")


def test_an_unknown_source_or_kind_is_answered_with_those_there_are(folder):
    for source, kind in (("flickr", "image"), ("coco", "video")):
        with pytest.raises(ConfigError, match=rf"source={source} kind={kind}: expected one of coco \(image, audio\)"):
            list(read_records(source, folder / "x.json", folder, kind))


def test_a_draw_is_seeded_and_keeps_the_order():
    records = [Record(str(n), "image", "coco", ("x",)) for n in range(50)]
    drawn = choose(records, 10, 1)
    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn, key=records.index)
    assert drawn == choose(records, 10, 1) != choose(records, 10, 2)
    assert choose(records, None, 0) == choose(records, 99, 0) == records
