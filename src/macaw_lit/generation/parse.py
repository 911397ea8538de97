"""A chat model's answer into dialogues: lines of questions and answers, or JSON, whole or cut off."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from macaw_lit.data.sources.rows import clean
from macaw_lit.generation.templates import Template

LABEL = re.compile(
    r"^[\s#*>_-]*(?:\d{1,3}\s*[.):]\s*)?[*_]*(q|question|instruction|a|answer|response)\s*\d{0,3}\s*[*_]*\s*[:.)][*_]*\s*",
    re.IGNORECASE,
)
"""`Q:`, `A3.`, `1. Question 1:`, `**Q:**` at the start of a line."""

REFUSAL = re.compile(r"\b(i'?m sorry|i am sorry|i can(?:no|')t|i am unable|i'm unable|as an ai)\b", re.IGNORECASE)
MAX_CHARACTERS = 200_000


@dataclass(frozen=True)
class Pair:
    """One instruction with its response, which is empty where people are to answer."""

    instruction: str
    response: str
    type: str = "unlabelled"


Dialogue = tuple[Pair, ...]


@dataclass(frozen=True)
class Completion:
    """What came back for one request; `counted` where the server tells how many tokens it was."""

    text: str
    finish_reason: str = "stop"
    refusal: bool = False
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    counted: bool = False


def parse(template: Template, answer: Completion, exact: bool = True) -> tuple[list[Dialogue], str | None]:
    """The complete dialogues of an answer, and why it should be asked for again; None if it need not.

    Causes: `length` (cut off), `refusal`, `malformed`, and, if `exact`, `count` (another number than was asked for).
    """
    text = answer.text[:MAX_CHARACTERS].replace("\u2019", "'")
    found, whole = (_lines(text), True) if template.form == "lines" else _json(text, template)
    if template.form == "lines" and answer.finish_reason == "length":
        found = found[:-1]  # the last answer may end in the middle of a sentence
    if answer.refusal or answer.finish_reason == "content_filter" or (not found and REFUSAL.search(text)):
        return found, "refusal"
    if answer.finish_reason == "length":
        return found, "length"
    if not whole or not found:
        return found, "malformed"
    return found, "count" if exact and len(found) != template.pairs else None


def _lines(text: str) -> list[Dialogue]:
    found: list[Dialogue] = []
    question: list[str] | None = None
    answer: list[str] | None = None

    def close() -> None:
        if question is not None and answer is not None:
            pair = Pair(_text(" ".join(question)), _text("\n".join(answer)))
            if pair.instruction and pair.response:
                found.append((pair,))

    for line in text.splitlines():
        label = LABEL.match(line)
        if label is None:
            last = answer if answer is not None else question
            if last is not None:
                last.append(line)
        elif label[1][0].lower() in "qi":
            close()
            question, answer = [line[label.end() :]], None
        elif question is not None and answer is None:
            answer = [line[label.end() :]]
    close()
    return found


def _json(text: str, template: Template) -> tuple[list[Dialogue], bool]:
    """The dialogues in a text, and whether its JSON is sound; code fences and words around it do not matter."""
    values, broken = [], False
    decoder, position = json.JSONDecoder(), text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
            values.append(value)
        except (ValueError, RecursionError):  # cut off or malformed here; what is complete further in still counts
            broken, end = True, position + 1
        position = text.find("{", end)
    found = [dialogue for value in values for dialogue in _dialogues(value, template)]
    return found, not broken


def _dialogues(value: Any, template: Template) -> Iterator[Dialogue]:
    """Every complete dialogue anywhere in a JSON value that is at most three levels deep."""
    for holder in _levels(value, 3):
        turns = holder.get("turns") if template.turns > 1 else [holder]
        if isinstance(turns, list) and turns:
            pairs = [_pair(turn, template.answers) for turn in turns]
            complete = tuple(pair for pair in pairs if pair is not None)
            if len(complete) == len(pairs) and (template.turns == 1 or len(pairs) > 1):
                yield complete


def _levels(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    if depth and isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _levels(part, depth - 1)


def _pair(turn: Any, answers: bool) -> Pair | None:
    if not isinstance(turn, dict):
        return None
    instruction, response, kind = (turn.get(name) for name in ("instruction", "response", "type"))
    if not isinstance(instruction, str) or not (isinstance(response, str) or not answers):
        return None
    pair = Pair(
        _text(instruction),
        _text(response) if answers and isinstance(response, str) else "",
        _text(kind)[:40] or "unlabelled" if isinstance(kind, str) else "unlabelled",
    )
    return pair if pair.instruction and (pair.response or not answers) else None


def _text(text: str) -> str:
    """Without lone surrogates, control characters and white space around it."""
    return clean(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
