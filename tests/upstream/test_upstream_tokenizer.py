"""LLaMA's tokenizer in the states in which people have it: sentencepiece's ids, tags where the weights expect them."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from macaw_lit.errors import WeightsError
from macaw_lit.upstream.sizes import TAGS
from macaw_lit.upstream.tokenizer import read_tokenizer

SIZE = 400
TEXT = "Below is an  instruction é 你 that\n\n### Instruction:\nThe <image> </s> [PAD] fox\n"
AT_THEIR_PLACES = {tag: SIZE + place for place, tag in enumerate(TAGS)}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.model of LLaMA's kind: BPE with bytes to fall back to, text taken as it is."""
    folder = tmp_path_factory.mktemp("pieces")
    lines = [
        f"The quick brown fox {number} jumps over the lazy dog ### Instruction: Response:" for number in range(300)
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=SIZE,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture
def folder(pieces: Path, tmp_path: Path) -> Path:
    made = tmp_path / "llama"
    made.mkdir()
    shutil.copy(pieces, made)
    (made / "config.json").write_text('{"model_type": "mm_llms"}')
    return made


@pytest.mark.parametrize(
    "said",
    [
        None,
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "LLaMATokenizer"},  # the first conversions; transformers reads it as something else
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "", "eos_token": "", "unk_token": ""},  # so have they
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True},  # the original's training
    ],
)
@pytest.mark.parametrize("added", [None, AT_THEIR_PLACES])
def test_ids_are_sentencepieces_and_the_tags_stand_behind(folder, pieces, tmp_path, said, added):
    for name, content in (("tokenizer_config.json", said), ("added_tokens.json", added)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    tokenizer = read_tokenizer(folder, TAGS, SIZE + 7)
    tokenizer.save_pretrained(tmp_path / "saved")
    expected = sentencepiece.SentencePieceProcessor(str(pieces)).encode(TEXT)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert each(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"] == expected
        assert (each.bos_token_id, each.eos_token_id, each.pad_token_id) == (1, 2, SIZE + 6)
        assert each.convert_tokens_to_ids(list(TAGS)) == list(range(SIZE, SIZE + 7))


@pytest.mark.parametrize(
    ("added", "rows", "expected"),
    [
        (
            None,
            SIZE + 8,
            f"gives <image> the id {SIZE}, but a checkpoint of {SIZE + 8} rows was trained with {SIZE + 1}",
        ),
        ({"[PAD]": SIZE}, SIZE + 7, f"gives <image> the id {SIZE + 1}, but"),
    ],
)
def test_other_ids_are_refused(folder, added, rows, expected):
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(WeightsError, match=expected):
        read_tokenizer(folder, TAGS, rows)


def test_blank_roles_are_filled_by_their_ids(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(["<unk>", "<s>", "</s>"], pad_token="<unk>", bos_token=None, eos_token=None)
    tokenizer.save_pretrained(tmp_path)
    filled = read_tokenizer(tmp_path, TAGS, len(tokenizer) + 7)
    assert (filled.bos_token, filled.eos_token, filled.pad_token) == ("<s>", "</s>", "[PAD]")


def test_a_tokenizer_of_another_family_is_refused(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(["<pad>", "<unk>", "</s>", "<s>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="gives <s> the id 3"):
        read_tokenizer(tmp_path, TAGS, len(tokenizer) + 7)
