"""The tokenizer of an original checkpoint: LLaMA's, with tags and padding under the ids that the weights know."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from macaw_lit.errors import WeightsError, in_one_line

_LLAMA: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_ROLES = {"bos_token": 1, "eos_token": 2}  # literals of the original's `generate`
_FILES = ("tokenizer.json", "tokenizer.model")


def read_tokenizer(folder: Path, tags: Sequence[str], rows: int) -> Any:
    """Read LLaMA's tokenizer and give it `tags`, the last of which pads; and BOS and EOS, if it has left them blank.

    Args:
        folder: with tokenizer.json, or else with tokenizer.model and the package sentencepiece installed.
        rows: of the embedding table, the last of which are those of `tags`, in order.

    Raises:
        WeightsError: there is no tokenizer, or its ids are not those of the checkpoint.
    """
    remedy = "give LLaMA's, without additions, as tokenizer=<folder>"
    tokenizer = _load(folder, remedy)
    for role, number in _ROLES.items():
        if not getattr(tokenizer, role):
            setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(number))
    tokenizer.add_tokens(list(tags[:-1]), special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": tags[-1]})
    expected = {str(getattr(tokenizer, role)): number for role, number in _ROLES.items()}
    expected |= {tag: rows - len(tags) + place for place, tag in enumerate(tags)}
    for token, number in expected.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != number:
            raise WeightsError(
                f"the tokenizer in {folder} gives {token} the id {found}, but a checkpoint of {rows} rows was trained "
                f"with {number}: {remedy}"
            )
    if len(tokenizer) != rows:
        raise WeightsError(f"the tokenizer in {folder} has {len(tokenizer)} tokens, the weights {rows} rows: {remedy}")
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds one of the files that `read_tokenizer` reads."""
    return any((folder / name).is_file() for name in _FILES)


def stand_in(tags: Sequence[str], rows: int) -> Any:
    """A tokenizer with the control ids of a checkpoint of `rows` rows and no word: text gives no ids at all."""
    names = {place: f"<{place}>" for place in range(rows - len(tags))}
    names |= {number: _LLAMA[role] for role, number in _ROLES.items()}
    names |= {rows - len(tags) + place: tag for place, tag in enumerate(tags)}
    core = Tokenizer(models.BPE({name: number for number, name in names.items()}, []))
    controls = {role: names[number] for role, number in _ROLES.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **controls, pad_token=tags[-1], additional_special_tokens=list(tags[:-1])
    )


def _load(folder: Path, remedy: str) -> Any:
    try:
        if (folder / "tokenizer.json").is_file():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if (folder / "tokenizer.model").is_file():
            # LLaMA's first conversions name a class that transformers does not know, which it then takes for another
            # tokenizer without a word, with other ids; and they leave BOS and EOS blank.
            return LlamaTokenizer.from_pretrained(folder, local_files_only=True, **_LLAMA)
    except Exception as error:  # transformers has no class for what may be wrong with a tokenizer
        raise WeightsError(
            f"{folder} holds no tokenizer that can be read ({in_one_line(error)}): {remedy}; "
            "one with tokenizer.model alone needs `pip install sentencepiece`"
        ) from error
    raise WeightsError(f"{folder} has no tokenizer.json and no tokenizer.model: {remedy}")
