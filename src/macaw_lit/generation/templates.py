"""What a chat model is asked: instructions from a template, captions as data, and what makes two questions the same."""

import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from macaw_lit.errors import ConfigError
from macaw_lit.generation.records import Record

MEDIA = {"image": "picture", "video": "video", "audio": "sound recording"}


@dataclass(frozen=True)
class Template:
    """A way of asking for instruction data.

    Attributes:
        name: what provenance calls it.
        system: the request, in which `$medium`, `$pairs`, `$turns` and `$types` are filled in.
        form: `lines` of "Q: …" and "A: …" as in Fig. 3 of the paper, or `json`.
        pairs: how many dialogues per medium: pairs, where `turns` is 1, as in the paper.
        turns: questions with answers in a dialogue; more than one needs `json`.
        answers: False asks for questions alone, which people answer (Fig. 2, second branch).
        types: the question types to choose from, by name.
    """

    name: str
    system: str
    form: Literal["lines", "json"] = "json"
    pairs: int = 10
    turns: int = 1
    answers: bool = True
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in ("lines", "json") or (self.form == "lines" and (self.turns > 1 or not self.answers)):
            raise ConfigError(f"template.form={self.form}: expected json, or lines of single pairs with answers")
        if self.pairs < 1 or self.turns < 1:
            raise ConfigError(f"template.pairs={self.pairs} turns={self.turns}: expected whole numbers of at least 1")
        self.text("image")

    @property
    def digest(self) -> str:
        """What tells this template from another, whatever they are called."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def text(self, kind: str) -> str:
        """The request for one kind of medium.

        Raises:
            ConfigError: the text has a `$name` that nothing fills in.
        """
        words = {"medium": MEDIA[kind], "pairs": self.pairs, "turns": self.turns, "types": ", ".join(self.types)}
        try:
            return string.Template(self.system).substitute(words).strip()
        except (KeyError, ValueError) as error:
            raise ConfigError(f"template {self.name}: {error} in its text, expected ${', $'.join(words)}") from error

    def messages(self, record: Record) -> list[dict[str, str]]:
        """The request, then the texts as JSON: quoted, so that nothing in them can end the data."""
        data = {"captions": record.texts, "transcript": record.transcript}
        content = json.dumps({key: value for key, value in data.items() if value}, ensure_ascii=False)
        return [{"role": "system", "content": self.text(record.kind)}, {"role": "user", "content": content}]

    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of an answer, in the keywords that strict servers take; None for lines.

        They refuse `minItems` (OpenAI), so the number of pairs is stated in words and counted on arrival.
        """
        if self.form == "lines":
            return None
        names = ["instruction", "response", "type"] if self.answers else ["instruction", "type"]
        pair = _object({name: {"type": "string"} for name in names})
        if self.turns > 1:
            pair = _object({"turns": {"type": "array", "items": pair}})
        return _object({"dialogues" if self.turns > 1 else "pairs": {"type": "array", "items": pair}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@dataclass(frozen=True)
class Asking:
    """How all media of a run are asked about; part of every job's identity.

    Attributes:
        temperature, seed: passed on as they are; None leaves them to the server.
        max_tokens: of one answer; doubled when an answer did not fit.
    """

    template: Template
    model: str = "gpt-3.5-turbo"
    max_tokens: int = 1024
    temperature: float | None = 1.0
    seed: int | None = 0

    def job(self, record: Record) -> "Job":
        """The job for one record; the same texts asked about in the same way are the same job."""
        own = [record.as_dict(), self.template.digest, self.model, self.max_tokens, self.temperature, self.seed]
        return Job(hashlib.sha256(json.dumps(own).encode()).hexdigest()[:20], record, self)


@dataclass(frozen=True)
class Job:
    """One medium to ask about."""

    id: str
    record: Record
    asking: Asking = field(repr=False)

    def request(self, max_tokens: int | None = None) -> "Request":
        """What is sent for it."""
        template = self.asking.template
        return Request(
            template, tuple(template.messages(self.record)), max_tokens or self.asking.max_tokens, self.asking
        )


@dataclass(frozen=True)
class Request:
    """One call of a chat model."""

    template: Template
    messages: tuple[Mapping[str, str], ...]
    max_tokens: int
    asking: Asking

    def body(self, limit_field: str = "max_tokens", rung: str = "json_schema") -> dict[str, Any]:
        """The body of a chat completion as OpenAI defines it.

        Args:
            limit_field: the name of the limit of an answer's tokens.
            rung: what the server understands of `response_format`: json_schema, json_object or plain.
        """
        body: dict[str, Any] = {"model": self.asking.model, "messages": [dict(each) for each in self.messages]}
        body[limit_field] = self.max_tokens
        body |= {name: value for name in ("temperature", "seed") if (value := getattr(self.asking, name)) is not None}
        schema = self.template.schema()
        if schema is not None and rung == "json_schema":
            named = {"name": "instruction_data", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif schema is not None and rung == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def bound(self) -> tuple[int, int]:
        """The most tokens that may be billed, in and out: a token of a byte-level vocabulary has at least one byte."""
        sent = len(json.dumps(self.template.schema())) + 64  # servers put the schema into the prompt
        return sent + sum(len(each["content"].encode()) + 8 for each in self.messages), self.max_tokens
