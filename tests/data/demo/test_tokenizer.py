import json

import pytest
from transformers import AutoTokenizer

from macaw_lit.data.demo.scenes import COLOURS, DIRECTIONS, SHAPES
from macaw_lit.data.demo.texts import WORDS
from macaw_lit.data.demo.tokenizer import train_tokenizer

MEDIA = ["<image>", "</image>", "<audio>", "</audio>", "<video>", "</video>"]


@pytest.fixture(scope="module")
def tokenizer(world):
    return AutoTokenizer.from_pretrained(world / "tokenizer")


def test_special_tokens_are_set_and_distinct(tokenizer):
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert ids == tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>"]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids(MEDIA) == [3, 4, 5, 6, 7, 8]
    assert {*MEDIA, "<pad>", "<s>", "</s>"} == set(tokenizer.all_special_tokens)
    assert tokenizer("red <image></s>").input_ids[-2:] == [3, 2]


@pytest.mark.parametrize("text", ["The circle is red.", "", "  two  spaces\n\n\ttab", "Grüße, 漢字 🎈 \x00", "3 + 4"])
def test_any_text_comes_back_and_nothing_is_added(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert not set(ids) & set(range(9))


def test_frequent_words_are_one_token(tmp_path):
    words = [*COLOURS, *SHAPES, *DIRECTIONS, *WORDS]
    texts = [f"The {a} is {b}." for a in words for b in words]
    train_tokenizer(texts, tmp_path)
    trained = AutoTokenizer.from_pretrained(tmp_path)
    assert all(len(trained(f" {word}").input_ids) == 1 for word in words)
    assert len(trained) <= 1000


def test_template_and_world_text_are_short(world, tokenizer):
    rows = json.loads((world / "coco/generated_examples_coco_train.json").read_text())["data"]
    for row in rows:
        assert len(tokenizer(row["response"]).input_ids) <= 3 * len(row["response"].split())
    assert len(tokenizer("Below is an instruction that describes a task.").input_ids) == 9
