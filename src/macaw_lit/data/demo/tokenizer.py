"""The demo world's tokenizer: byte-level BPE trained on the training text, saved as a transformers tokenizer folder."""

from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from macaw_lit.data.prompt import Prompt

VOCABULARY = 1000
NAMED_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
MEDIA_TOKENS = ("<image>", "</image>", "<audio>", "</audio>", "<video>", "</video>")


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Trains on `texts` and the prompt template; `AutoTokenizer.from_pretrained(folder)` loads the result.

    `<pad>` `<s>` `</s>` are ids 0, 1, 2, followed by the media delimiters. Nothing is added around a text: who wants
    BOS or EOS sets it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*NAMED_TOKENS.values(), *MEDIA_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    template = "".join(astuple(Prompt()))
    tokenizer.train_from_iterator([*texts, *[template] * 100], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **NAMED_TOKENS,
        additional_special_tokens=list(MEDIA_TOKENS),
    ).save_pretrained(str(folder))
