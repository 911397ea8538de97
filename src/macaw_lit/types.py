"""The values that travel between the rooms of the house, from a row on disk to a batch on a device.

Shape legend, used in every signature:
    B rows of a batch          T positions of a row, media slots included
    N media items              F frames of a video        S encoder positions of an item     K soft tokens of an item
    E encoder width            D LLM width                V vocabulary                       M mel bins
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = -100
"""Label of a position that bears no loss: prompt, media slot or padding."""

Role = Literal["system", "user", "assistant"]
Medium = Literal["image", "video", "audio"]
"""What a decoder delivers: a picture, frames of a video, or a waveform."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A medium within a larger file, such as a member of a tar.

    Attributes:
        path: the larger file.
        offset, size: where the medium's bytes are in it.
        name: the medium's own file name.
        sha256: of these bytes, in hexadecimal digits; compared whenever they are read.
    """

    path: Path | str
    offset: int
    size: int
    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.path}:{self.offset}+{self.size} {self.name}"


@dataclass(frozen=True, slots=True)
class Bytes:
    """The content of a medium's file, in memory; as a text it is named by its digest."""

    data: bytes = field(repr=False)
    name: str = "bytes in memory"

    def __str__(self) -> str:
        return f"{self.name} {hashlib.sha256(self.data).hexdigest()[:16]}"


Place = Path | str | Slice | Bytes
"""Where the encoded bytes of a medium are; its text names it in messages and is unique to its content."""


@dataclass(frozen=True)
class MediaRef:
    """One medium of a turn. A video's own sound is a second ref: kind `audio`, the video's path."""

    kind: str
    path: Place


@dataclass(frozen=True)
class Decoded(MediaRef):
    """A medium that is in memory already; `path` only names it in messages.

    Attributes:
        values: picture uint8 [H,W,3], frames of a whole video uint8 [F,H,W,3], or mono waveform float32 at 16 kHz.
    """

    values: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class Turn:
    """One utterance of a dialogue with the media that belong to it.

    Attributes:
        spoken: a user's turn that is heard and not read: it has a sound, and its text is empty.
    """

    role: Role
    text: str
    media: tuple[MediaRef, ...] = ()
    spoken: bool = False


@dataclass(frozen=True)
class Sample:
    """A dialogue as it stands on disk. `uid` is "source/item/row" and names it in every skip and prediction."""

    turns: tuple[Turn, ...]
    uid: str
    source: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """A row or medium that was not used: `cause` is what skips are counted by, `locator` where it is.

    `source` is the mixture's name of its source, once the mixture has drawn it.
    """

    cause: str
    locator: str
    detail: str = ""
    source: str = ""


@dataclass(frozen=True)
class MediaSpec:
    """What the data side must know of one modality; the model's parts fill it in.

    Attributes:
        decoder: which decoder the raw medium needs.
        transform: decoded medium → encoder input. `image` and `video`: one uint8 [H,W,3] picture → float [3,H,W].
            `audio`: a float32 mono waveform [samples] at 16 kHz → log-mel [M,frames].
        num_tokens: K, the soft tokens (slots) of one item.
        shape: the encoder input's shape of one item, for batches that hold none of this kind.
        frames: F of a video; None otherwise.
    """

    decoder: Medium
    transform: Callable[[np.ndarray], Tensor]
    num_tokens: int
    shape: tuple[int, ...]
    frames: int | None = None


@dataclass
class Example:
    """One tokenised row: the output of the preprocessor, the input of the collator.

    Attributes:
        labels: `input_ids` where the response is learned, `IGNORE` elsewhere; None when predicting.
        media: kind → stacked encoder inputs of this row, in slot order.
        slots: kind → positions that the soft tokens of that kind fill, in item order.
        truncated: the response did not fit `max_length` and was cut.
        skipped: samples that were unusable and that this one stands in for.
        source, epoch: the mixture's name of its source, and the mixture's epoch that it was drawn in.
    """

    input_ids: Int[Tensor, " t"]
    labels: Int[Tensor, " t"] | None
    media: dict[str, Float[Tensor, "n ..."]]
    slots: dict[str, Bool[Tensor, " t"]]
    uid: str
    truncated: bool = False
    skipped: tuple[Rejection, ...] = ()
    source: str = ""
    epoch: int = 0


@dataclass
class Media:
    """One kind of medium in one batch, in row order, then slot order; `slots.sum() == N·K`."""

    values: Float[Tensor, "n ..."]
    slots: Bool[Tensor, "b t"]


@dataclass
class Batch:
    """What the model eats.

    `media` holds every kind the model has, with n = 0 rows where the batch has none of it, so that each encoder
    is called exactly once whatever the batch contains. `sources` names each sample's source in the mixture, `truncated`
    the source of each sample whose response was cut, and `epoch` is the mixture's. `step_tokens` counts the response
    tokens of this process in the whole optimizer step; None where the loader does not look that far.
    A row is a sample, unless there are `position_ids`: then it holds several, each from position 0, none of which may
    see another. Padding has position 0 too. What is listed by sample is in the order drawn, not in that of rows.
    `model.generate(**batch)` and `batch["input_ids"]` work as with the inputs of transformers.
    """

    input_ids: Int[Tensor, "b t"]
    attention_mask: Bool[Tensor, "b t"]
    labels: Int[Tensor, "b t"] | None
    media: dict[str, Media]
    uids: list[str]
    sources: list[str] = field(default_factory=list)
    truncated: tuple[str, ...] = ()
    skipped: tuple[Rejection, ...] = ()
    epoch: int = 0
    step_tokens: int | None = None
    position_ids: Int[Tensor, "b t"] | None = None

    @property
    def samples(self) -> Int[Tensor, "b t"]:
        """Which sample each position belongs to, counted through the batch; padding of packed rows has its own."""
        if self.position_ids is None:
            return torch.arange(len(self.input_ids), device=self.input_ids.device)[:, None].expand_as(self.input_ids)
        return (self.position_ids == 0).flatten().cumsum(0).view_as(self.position_ids) - 1

    @property
    def response_tokens(self) -> int:
        """Positions that bear loss: the first of a row has nothing before it that could predict it."""
        return 0 if self.labels is None else int((self.labels[:, 1:] != IGNORE).sum())

    def keys(self) -> tuple[str, ...]:
        """What `**batch` passes on: all that generating needs, and what it must refuse."""
        return ("input_ids", "attention_mask", "media", *(() if self.position_ids is None else ("position_ids",)))

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def to(
        self,
        device: torch.device | str | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> "Batch":
        """A copy whose tensors are on `device`, those with fractions in `dtype`; as in torch it can come alone."""
        place, precision = (None, device) if isinstance(device, torch.dtype) else (device, dtype)
        return self._map(
            lambda tensor: tensor.to(place, precision if tensor.is_floating_point() else None, non_blocking)
        )

    def pin_memory(self) -> "Batch":
        """A copy whose tensors are in page-locked memory; the loader calls it when it pins."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            input_ids=move(self.input_ids),
            attention_mask=move(self.attention_mask),
            labels=None if self.labels is None else move(self.labels),
            position_ids=None if self.position_ids is None else move(self.position_ids),
            media={kind: Media(move(media.values), move(media.slots)) for kind, media in self.media.items()},
        )


@dataclass
class Output:
    """What a forward pass gives: with labels the summed loss and its token count, without labels the logits."""

    nll: Float[Tensor, ""] | None = None
    tokens: Int[Tensor, ""] | None = None
    logits: Float[Tensor, "b t v"] | None = None
