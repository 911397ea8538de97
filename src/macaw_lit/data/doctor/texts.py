"""Whether the text of a row fits: by a tokenizer where one is given, else by a rule of thumb."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from macaw_lit.data.prompt import Prompt
from macaw_lit.errors import ConfigError, in_one_line
from macaw_lit.types import Sample

CHARACTERS = 4
"""Characters per token of English text in vocabularies of some ten thousands, the rule of thumb."""


@dataclass(frozen=True)
class Fit:
    """How long a row's text is; media slots, which depend on the model, are not counted.

    Attributes:
        prompt: tokens before the first response.
        total: all tokens.
        room: the most that a row may have.
        certain: counted by a tokenizer.
    """

    prompt: int
    total: int
    room: int
    certain: bool

    @property
    def too_long(self) -> bool:
        """No response would fit."""
        return self.prompt >= self.room

    @property
    def cut(self) -> bool:
        """A part of the responses would be cut."""
        return not self.too_long and self.total > self.room


class TextRuler:
    """Measures rows as the preprocessor lays them out, with the default template.

    Args:
        room: the preprocessor's `max_length`.
        tokenizer: a folder with `tokenizer.json`, or that file.

    Raises:
        ConfigError: there is no readable tokenizer.
    """

    def __init__(self, room: int, tokenizer: Path | str | None = None) -> None:
        self.room = room
        self.prompt = Prompt()
        self.count: Callable[[str], int] = lambda text: -(-len(text) // CHARACTERS)
        self.certain = tokenizer is not None
        if tokenizer is not None:
            path = Path(tokenizer, "tokenizer.json") if Path(tokenizer).is_dir() else Path(tokenizer)
            try:
                core = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises no narrower class
                raise ConfigError(f"{path}: no tokenizer ({in_one_line(error)}); give a folder with one") from error
            self.count = lambda text: len(core.encode(text, add_special_tokens=False).ids)

    def __call__(self, sample: Sample) -> Fit:
        """The fit of one row.

        Raises:
            SampleError: the preprocessor would refuse its turns.
        """
        segments = self.prompt.segments(sample)
        first = next((place for place, segment in enumerate(segments) if segment.learn), len(segments))
        lengths = [self.count(segment.text) + segment.learn for segment in segments]  # a response ends with EOS
        return Fit(1 + sum(lengths[:first]), 1 + sum(lengths), self.room, self.certain)
