import asyncio
import json
import random

import pytest

from macaw_lit.data.demo.render import Sizes, render
from macaw_lit.generation.grammar import TemplateBackend, questions
from macaw_lit.generation.parse import parse
from macaw_lit.generation.records import Record, read_records
from macaw_lit.generation.templates import Asking, Template


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds") / "world"
    render(root, sizes=Sizes(images=48, videos=24, sounds=40, texts=30, heldout=6), workers=1)
    return root


WORLDS = {
    "coco": (
        "image",
        "coco/annotations/captions_train2017.json",
        "coco/train2017",
        "coco/generated_examples_coco_train.json",
    ),
    "charades": ("video", "charades/Charades_v1_train.csv", "charades", "avsd/generated_examples_avsd_train.json"),
    "avsd": (
        "video",
        "avsd/train_set4DSTC7-AVSD.json",
        "charades/Charades_v1_480",
        "avsd/generated_examples_avsd_train.json",
    ),
    "audio": ("audio", "audio/captions_train.json", "audio/train", "audio/generated_examples_audio_train.json"),
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_captions_give_the_demo_worlds_own_questions_with_the_true_answers(world, name):
    kind, captions, media, truth = WORLDS[name]
    source = "coco" if name == "audio" else name
    records = list(read_records(source, world / captions, world / media, kind))
    assert {type(record) for record in records} == {Record}
    stems = {record.id.rpartition("/")[2]: record for record in records}
    rows = json.loads((world / truth).read_text())["data"]
    compared = 0
    for row in rows:
        record = stems[row["id"]]
        asked = {}
        for seed in range(12):  # phrasings are drawn; enough draws hold them all
            asked |= {(each.type, each.text): each.response for each in questions(random.Random(seed), record.texts)}
        silent = kind == "video" and row["type"].startswith(("audio", "av"))
        if silent and (row["type"], row["instruction"]) not in asked:
            continue  # "no sound" may be a silent track or none, so that nothing is asked about it
        assert asked[row["type"], row["instruction"]] == row["response"]
        compared += 1
    assert compared > len(rows) / 2


def test_other_captions_are_asked_about_plainly_and_equal_requests_are_answered_equally():
    asking = Asking(Template("t", "x", pairs=3), "template")
    request = asking.job(Record("1.jpg", "image", "coco", ("A dog runs.", "A dog on grass."))).request()
    first, second = (asyncio.run(TemplateBackend().complete(request)) for _ in range(2))
    assert first == second
    found, fault = parse(request.template, first, exact=False)
    assert fault is None
    assert {pair.response for (pair,) in found} == {"A dog runs.", "A dog on grass."}


@pytest.mark.parametrize(
    "template",
    [Template("l", "x", form="lines"), Template("d", "x", pairs=2, turns=3), Template("b", "x", answers=False)],
    ids=lambda each: each.name,
)
def test_every_form_of_answer_is_given(template):
    texts = ("Two objects on a white background: a red circle at the top left and a blue cross at the top right.",)
    request = Asking(template, "template").job(Record("1.jpg", "image", "coco", texts)).request()
    found, fault = parse(template, asyncio.run(TemplateBackend().complete(request)), exact=False)
    assert fault is None
    assert found
    assert all(len(dialogue) <= template.turns for dialogue in found)
