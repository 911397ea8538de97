"""Captions to targets, against targets found by hand."""

import json

import pytest
import torch

from macaw_lit.data.demo.phrases import (
    RARE,
    avsd_captions,
    coco_captions,
    phrases_of,
    targets,
    vocabulary,
)


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["A red circle."], {"red", "circle", "red circle"}),
        (["The circle is at the top, and it is RED."], {"circle", "top", "circle top", "red"}),
        (["A dog and a cat"], {"dog", "cat"}),
        (["one hears two beeps: high; low"], {"two", "beeps", "two beeps", "high", "low"}),
        (["red circle", "blue square"], {"red", "circle", "red circle", "blue", "square", "blue square"}),
        (["", "  ,. ", "the of and"], set()),
        ([], set()),
    ],
)
def test_words_and_neighbours_within_a_clause(captions, expected):
    assert phrases_of(captions) == expected


def test_a_vocabulary_of_phrases_that_tell_media_apart():
    captions = {f"{number}.jpg": ["a picture of something"] for number in range(100)}
    for number in range(100):
        if number < RARE:
            captions[f"{number}.jpg"].append("just enough")
        if number < RARE - 1:
            captions[f"{number}.jpg"] += ["scarce", "scarce"]  # said twice of a medium counts once
        if number < 98:
            captions[f"{number}.jpg"].append("nearly")
        if number < 60:
            captions[f"{number}.jpg"].append("common")
    found = vocabulary(captions)
    assert found == ["nearly", "common", "enough", "just", "just enough"]  # the last three are equally common


def test_targets_by_medium_and_phrase():
    captions = {"a.jpg": ["red circle"], "b.jpg": ["blue circle", "a red square"], "c.jpg": []}
    found = targets(captions, ["circle", "red square", "red", "red circle"])
    assert torch.equal(found, torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]))


def test_captions_of_a_coco_file_come_by_file_name(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "seven.jpg"}, {"id": 8, "file_name": "eight.jpg"}],
        "annotations": [
            {"image_id": 8, "id": 1, "caption": "eight"},
            {"image_id": 7, "id": 2, "caption": "seven"},
            {"image_id": 8, "id": 3, "caption": "again eight"},
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    expected = {"seven.jpg": ["seven"], "eight.jpg": ["eight", "again eight"]}
    assert coco_captions(tmp_path / "captions.json") == expected


def test_fields_of_a_dstc_file_come_by_video(tmp_path):
    dialogs = [{"image_id": "AB12C", "caption": "a door", "summary": "a bang", "dialog": []}]
    (tmp_path / "train.json").write_text(json.dumps({"type": "train", "dialogs": dialogs}))
    assert avsd_captions(tmp_path / "train.json", "caption") == {"AB12C": ["a door"]}
    assert avsd_captions(tmp_path / "train.json", "summary") == {"AB12C": ["a bang"]}


def test_the_worlds_captions_name_what_differs(world):
    said = coco_captions(world / "coco" / "annotations" / "captions_train2017.json")
    assert len(said) == 24
    phrases = set().union(*map(phrases_of, said.values()))
    assert any(f"{colour} {shape}" in phrases for colour in ("red", "blue", "green") for shape in ("circle", "square"))
    assert {"a", "the", "of"}.isdisjoint(phrases)
