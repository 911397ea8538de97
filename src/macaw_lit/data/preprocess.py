"""Sample → Example: token ids, labels, encoder inputs, and the slots that soft tokens will fill."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from macaw_lit.data.media.disk import DiskCache
from macaw_lit.data.prepared import Prepared
from macaw_lit.data.prompt import Prompt, Segment
from macaw_lit.errors import ConfigError, MediaError, SampleError
from macaw_lit.types import IGNORE, Example, MediaRef, MediaSpec, Sample

Layout = Literal["prefix", "inline"]
Missing = Literal["omit", "zeros"]
CHARS_PER_TOKEN = 64  # no vocabulary in use has longer words; bounds the work spent on text that cannot fit anyway


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of `transformers` have it."""

    bos_token_id: Any
    eos_token_id: Any
    pad_token_id: Any
    unk_token_id: Any

    def convert_tokens_to_ids(self, tokens: str, /) -> Any:
        """The id of a token; None or `unk_token_id` where there is none."""

    def convert_ids_to_tokens(self, ids: int, /) -> Any:
        """The token of an id."""

    def __call__(self, text: str, /, *, add_special_tokens: bool, split_special_tokens: bool) -> Any:
        """A mapping whose `input_ids` are the ids of the text."""


@dataclass
class _Row:
    """A row as it grows: ids, which of them are learned, and per kind the slot positions and the media of them."""

    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)
    slots: dict[str, list[int]] = field(default_factory=dict)
    refs: dict[str, list[MediaRef | None]] = field(default_factory=dict)  # None: a block of zeros
    media_end: int = 0

    def add(self, ids: Sequence[int], learn: bool = False) -> None:
        self.ids += ids
        self.learn += [learn] * len(ids)


class Preprocessor:
    """Tokenises a dialogue, decodes its media and lays out the slots; the same object serves training and prediction.

    Text is tokenised with special tokens off: a literal `<image>` or `</s>` in it stays text. Control ids come from
    the template alone, labels are masked by construction, and media blocks are never cut.

    Args:
        tokenizer: has BOS, which may be EOS, EOS, a pad token and `<kind>`, `</kind>` for every kind of `specs`.
        specs: kind → what its encoder wants.
        order: the kinds in the order of their blocks (layout `prefix`).
        layout: `prefix` puts the blocks of all turns after BOS; `inline` before the text of the turn they belong to.
        missing: `omit` leaves absent media out. `zeros` gives every kind that a row lacks one block of zeros, after the
            transform, as the original Macaw-LLM was trained: only for its weights, and for layout `prefix`.
        max_length: the most positions of a row, slots included.
        prompt: the template.
        cache_mb: memory for encoder inputs, per worker process, in MiB; 0 keeps none there.
        cache_dir: folder for encoder inputs, for all processes and runs; None keeps none on disk.
        cache_gb: the most that the folder takes, in GiB.
        drop_media: probability that a training sample loses one kind of its media, chosen at random. It teaches the
            model what absence looks like; a pure function of seed, epoch and uid.
        seed: of `drop_media`.

    Raises:
        ConfigError: a control token is missing or not distinct, or `order` lacks a kind.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        specs: Mapping[str, MediaSpec],
        order: Sequence[str] = ("image", "video", "audio"),
        layout: Layout = "prefix",
        missing: Missing = "omit",
        max_length: int = 512,
        prompt: Prompt | None = None,
        cache_mb: int = 0,
        cache_dir: Path | str | None = None,
        cache_gb: int | float = 50,
        drop_media: float = 0.0,
        seed: int = 0,
    ) -> None:
        if unordered := [kind for kind in specs if kind not in order]:
            raise ConfigError(f"order={list(order)} lacks {unordered}; list every kind that has an encoder")
        if layout not in ("prefix", "inline"):
            raise ConfigError(f"layout={layout!r}; expected 'prefix' or 'inline'")
        if missing not in ("omit", "zeros"):
            raise ConfigError(f"missing={missing!r}; expected 'omit' or 'zeros'")
        if missing == "zeros" and layout != "prefix":
            raise ConfigError(f"missing='zeros' with layout={layout!r}: absent media have no turn; use layout='prefix'")
        if not 0.0 <= drop_media <= 1.0:
            raise ConfigError(f"drop_media={drop_media}; expected a probability between 0 and 1")
        if cache_mb < 0:
            raise ConfigError(f"cache_mb={cache_mb}; expected at least 0, which keeps nothing")
        self.tokenizer = tokenizer
        self.specs = dict(specs)
        self.order = tuple(order)
        self.layout = layout
        self.missing = missing
        self.max_length = max_length
        self.prompt = prompt or Prompt()
        self.drop_media = drop_media
        self.seed = seed
        disk = None if cache_dir is None else DiskCache(cache_dir, round(cache_gb * 2**30))
        self.prepared = Prepared(specs, cache_mb * 2**20, disk)
        self.bos, self.eos, self.pad, self.delimiters = _control_ids(tokenizer, specs)

    def __call__(self, sample: Sample, predict: bool = False, epoch: int = 0) -> Example:
        """One row: ids [T], labels [T] or None, media kind → [n, …], slots kind → [T].

        Raises:
            SampleError: the row does not fit `max_length` or its turns are unusable.
            MediaError: a medium is unusable, or of a kind that the model has no encoder for.
        """
        if self.drop_media and not predict:
            sample = self._drop(sample, epoch)
        row = self._lay_out(sample, predict)
        truncated = self._fit(row, sample.uid)
        ids = torch.tensor(row.ids, dtype=torch.long)
        slots = {kind: torch.zeros(len(ids), dtype=torch.bool) for kind in row.slots}
        for kind, positions in row.slots.items():
            slots[kind][positions] = True
        labels = None if predict else torch.where(torch.tensor(row.learn), ids, IGNORE)
        media = {kind: torch.stack([self._load(kind, ref) for ref in refs]) for kind, refs in row.refs.items()}
        return Example(ids, labels, media, slots, sample.uid, truncated)

    def _drop(self, sample: Sample, epoch: int) -> Sample:
        kinds = sorted({ref.kind for turn in sample.turns for ref in turn.media})
        if any(turn.spoken for turn in sample.turns):  # without the sound nothing would be asked
            kinds = [kind for kind in kinds if kind != "audio"]
        draw = random.Random(f"{self.seed}/{epoch}/{sample.uid}")
        if not kinds or draw.random() >= self.drop_media:
            return sample
        lost = draw.choice(kinds)
        turns = (replace(turn, media=tuple(ref for ref in turn.media if ref.kind != lost)) for turn in sample.turns)
        return replace(sample, turns=tuple(turns))

    def _lay_out(self, sample: Sample, predict: bool) -> _Row:
        segments = self.prompt.segments(sample, predict)
        refs = [ref for segment in segments for ref in segment.media]
        for ref in refs:
            if ref.kind not in self.specs:
                known = ", ".join(self.specs) or "text only"
                raise MediaError("no_encoder", f"{sample.uid}: kind {ref.kind!r}; this model has {known}; leave it out")
        row = _Row()
        row.add([self.bos])
        if self.layout == "prefix":
            for kind in self.order:
                given = [ref for ref in refs if ref.kind == kind]
                for ref in given:
                    self._add_block(row, kind, ref)
                if not given and kind in self.specs and self.missing == "zeros":
                    self._add_block(row, kind, None)
            segments = [segment._replace(media=()) for segment in segments]
        for segment in _merge(segments):
            for ref in segment.media:
                self._add_block(row, ref.kind, ref)
            row.add(self._encode(segment.text, sample.uid, segment.learn), segment.learn)
            if segment.learn:
                row.add([self.eos], learn=True)
        return row

    def _add_block(self, row: _Row, kind: str, ref: MediaRef | None) -> None:
        opening, closing = self.delimiters[kind]
        count = self.specs[kind].num_tokens
        first = len(row.ids) + 1
        row.add([opening, *[self.pad] * count, closing])
        row.slots.setdefault(kind, []).extend(range(first, first + count))
        row.refs.setdefault(kind, []).append(ref)
        row.media_end = len(row.ids)

    def _encode(self, text: str, uid: str, cut: bool) -> list[int]:
        limit = CHARS_PER_TOKEN * self.max_length
        if len(text) > limit and not cut:
            raise self._too_long(uid, f"{len(text)} characters of prompt")
        try:
            text[: limit + 1].encode()
        except UnicodeEncodeError as error:
            raise SampleError("bad_text", f"{uid}: half a surrogate pair in the text; re-encode it as UTF-8") from error
        encoded = self.tokenizer(text[: limit + 1], add_special_tokens=False, split_special_tokens=True)
        if text.strip() and not encoded["input_ids"]:
            known = "the tokenizer knows no part of the text; build or import the model with its own tokenizer=<folder>"
            raise SampleError("bad_text", f"{uid}: {known}")
        return list(encoded["input_ids"])

    def _fit(self, row: _Row, uid: str) -> bool:
        """Cuts the responses on the right where the row is too long, and says whether it did."""
        prompt = row.learn.index(True) if True in row.learn else len(row.ids)
        if prompt >= self.max_length or row.media_end > self.max_length:
            raise self._too_long(uid, f"prompt and media take {max(prompt, row.media_end)} positions")
        if len(row.ids) <= self.max_length:
            return False
        end = self.max_length
        while not row.learn[end - 1]:  # a later question whose response was cut away has nothing to teach
            end -= 1
        end = max(end, row.media_end)
        del row.ids[end:], row.learn[end:]
        return True

    def _too_long(self, uid: str, what: str) -> SampleError:
        limit = f"at most {self.max_length - 1} positions leave room for a response"
        return SampleError("text_too_long", f"{uid}: {what}; {limit}; shorten it or raise max_length")

    def _load(self, kind: str, ref: MediaRef | None) -> Tensor:
        return torch.zeros(self.specs[kind].shape) if ref is None else self.prepared.load(kind, ref)


def _merge(segments: Sequence[Segment]) -> list[Segment]:
    """Joins prompt text that no media block divides, so that it is tokenised as one."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and not (segment.media or segment.learn or merged[-1].learn):
            segment = merged[-1]._replace(text=merged.pop().text + segment.text)
        merged.append(segment)
    return merged


def _control_ids(
    tokenizer: Tokenizer, specs: Mapping[str, MediaSpec]
) -> tuple[int, int, int, dict[str, tuple[int, int]]]:
    """BOS, EOS, pad and per kind two delimiters: present, distinct but for BOS, and out of the reach of plain text."""
    ids: dict[str, Any] = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for kind in specs:
        for token in (f"<{kind}>", f"</{kind}>"):
            found = tokenizer.convert_tokens_to_ids(token)
            ids[token] = None if found == tokenizer.unk_token_id else found
    if missing := [name for name, value in ids.items() if value is None]:
        raise ConfigError(f"the tokenizer has no {', '.join(missing)} token; add it with add_special_tokens")
    apart = [value for name, value in ids.items() if name != "bos" or value != ids["eos"]]  # GPT-2 has one for both
    if len(set(apart)) < len(apart):
        raise ConfigError(f"control tokens share an id: {ids}; give each its own with add_special_tokens")
    for name, value in ids.items():
        text = tokenizer.convert_ids_to_tokens(value)
        if value in tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
            raise ConfigError(f"the text {text!r} becomes the {name} control id {value}; add it as a special token")
    return ids["bos"], ids["eos"], ids["pad"], {kind: (ids[f"<{kind}>"], ids[f"</{kind}>"]) for kind in specs}
