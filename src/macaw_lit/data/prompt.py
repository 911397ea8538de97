"""The instruction template: dialogue turns to text segments, each learned or not."""

from dataclasses import dataclass
from typing import NamedTuple

from macaw_lit.errors import SampleError
from macaw_lit.types import MediaRef, Sample, Turn


class Segment(NamedTuple):
    """A stretch of text. `learn` marks a response, which the tokenised row ends with EOS; `media` stand before it."""

    text: str
    learn: bool = False
    media: tuple[MediaRef, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """Alpaca's template, as the original Macaw-LLM words it; further turns repeat instruction and response.

    A system turn replaces the header. `Sample.meta["input"]` is rendered under its own heading in the first user turn.
    A spoken turn has its headings with nothing between them: what is asked stands in its sound.

    Attributes:
        header: what a dialogue without an input begins with.
        header_with_input: what a dialogue with an input begins with.
        instruction: what stands before the text of each user turn.
        input: what stands before the input.
        response: the end of every prompt, after which the model writes.
        answer: the beginning of every response; learned with it.
    """

    header: str = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    header_with_input: str = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
    )
    instruction: str = "\n\n### Instruction:\n"
    input: str = "\n\n### Input:\n"
    response: str = "\n\n### Response:"
    answer: str = "\n"

    def segments(self, sample: Sample, predict: bool = False) -> list[Segment]:
        """The dialogue in order. To predict, a final assistant turn is left out, so that the text ends with a prompt.

        Raises:
            SampleError: the turns are not [system] (user assistant)+, or a user turn that is not spoken says nothing.
        """
        system, turns = _split(sample, predict)
        given = str(sample.meta.get("input") or "")
        opening = system.text if system else (self.header_with_input if given else self.header)
        segments = [Segment(opening, media=system.media if system else ())]
        for index, turn in enumerate(turns):
            if turn.role == "assistant":
                segments.append(Segment(self.answer + turn.text, learn=True, media=turn.media))
                continue
            if not turn.text.strip() and not turn.spoken:
                raise SampleError("empty_instruction", f"{sample.uid}: the instruction is empty; write what is asked")
            body = turn.text + (self.input + given if given and index == 0 else "")
            segments += [Segment(self.instruction), Segment(body + self.response, media=turn.media)]
        return segments


def _split(sample: Sample, predict: bool) -> tuple[Turn | None, tuple[Turn, ...]]:
    """The system turn, if any, and the alternating rest."""
    turns = sample.turns
    system = turns[0] if turns and turns[0].role == "system" else None
    turns = turns[1:] if system else turns
    if predict and turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    roles = [turn.role for turn in turns]
    if roles and roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] and not predict:
        raise SampleError("no_response", f"{sample.uid}: ends with a question; a training row needs a response to it")
    if not roles or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        expected = "[system] user (assistant user)*" if predict else "[system] (user assistant)+"
        got = " ".join(turn.role for turn in sample.turns) or "none"
        raise SampleError("turn_order", f"{sample.uid}: turns are {got}; expected {expected}; reorder or merge them")
    return system, turns
