"""The chat template, rendered by transformers, against the rows of the preprocessor."""

from typing import Any

import numpy as np
import pytest
import torch

from macaw_lit.data.chat_template import chat_template
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.prompt import Prompt
from macaw_lit.types import MediaRef, MediaSpec, Sample, Turn

# Jinja's own marks, quotes, backslashes, and a character beyond 16 bits; names of the template's variables too.
STRANGE = Prompt(header='{{ bos }} "it\'s" \\n {% if %} 🦜 eos', instruction="\n# INST ", response=" {# ", answer="»")
TEMPLATES = {"alpaca": Prompt(), "strange": STRANGE}


@pytest.fixture
def specs() -> dict[str, MediaSpec]:
    def transform(values: np.ndarray) -> torch.Tensor:
        return torch.zeros(3, 4, 4)

    return {
        "image": MediaSpec("image", transform, 2, (3, 4, 4)),
        "video": MediaSpec("video", transform, 3, (2, 3, 4, 4), 2),
        "audio": MediaSpec("audio", transform, 1, (3, 4, 4)),
    }


def part(kind: str) -> dict[str, str]:
    return {"type": kind, "path": f"a.{kind}"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


DIALOGUES: dict[str, list[dict[str, Any]]] = {
    "a word": [{"role": "user", "content": "Why?"}],
    "media in no order": [
        {"role": "user", "content": [part("audio"), text("What "), part("image"), part("video"), text("then?")]},
    ],
    "several turns": [
        {"role": "system", "content": "You see."},
        {"role": "user", "content": [part("image"), text("What?")]},
        {"role": "assistant", "content": [text("A dot.")]},
        {"role": "user", "content": [part("video"), part("image"), text("And now?\n")]},
    ],
    "a system that shows": [
        {"role": "system", "content": [part("image"), text("Look.")]},
        {"role": "user", "content": "Well?"},
    ],
}


def as_sample(messages: list[dict[str, Any]]) -> Sample:
    """The dialogue as the data side has it, written out apart from the processor."""
    turns = []
    for message in messages:
        parts = [text(message["content"])] if isinstance(message["content"], str) else message["content"]
        media = tuple(MediaRef(found["type"], found["path"]) for found in parts if found["type"] != "text")
        turns.append(Turn(message["role"], "".join(found.get("text", "") for found in parts), media))
    return Sample(tuple(turns), "x", "test")


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("prompt", TEMPLATES)
@pytest.mark.parametrize(
    "options", [{}, {"layout": "inline"}, {"missing": "zeros"}, {"order": ("audio", "video", "image")}]
)
def test_the_text_is_the_row_written_out(make_tokenizer, specs, monkeypatch, dialogue, prompt, options):
    tokenizer = make_tokenizer()
    preprocess = Preprocessor(tokenizer, specs, prompt=TEMPLATES[prompt], **options)
    monkeypatch.setattr(preprocess.prepared, "load", lambda kind, ref: torch.zeros(specs[kind].shape))
    messages = DIALOGUES[dialogue]
    ids = preprocess(as_sample(messages), predict=True).input_ids.tolist()
    tokenizer.chat_template = chat_template(preprocess)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if len(messages) == 1:  # with answers in between, a tokeniser of plain text may join across their borders
        tokenised = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
        assert tokenised["input_ids"] == ids


def test_an_answer_ends_as_in_training(make_tokenizer, specs):
    tokenizer = make_tokenizer()
    preprocess = Preprocessor(tokenizer, specs)
    tokenizer.chat_template = chat_template(preprocess)
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    ids = preprocess(as_sample(messages)).input_ids.tolist()
    assert tokenizer.apply_chat_template(messages, tokenize=False) == tokenizer.decode(ids)
    assert tokenizer.decode(ids).endswith("### Response:\nSo.</s>")


def test_turns_out_of_order_are_refused(make_tokenizer, specs):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat_template(Preprocessor(tokenizer, specs))
    with pytest.raises(Exception, match="not assistant here"):  # jinja2.TemplateError
        tokenizer.apply_chat_template([{"role": "assistant", "content": "Hi."}], tokenize=False)
