"""The seam between embeddings and language."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from macaw_lit.errors import ConfigError
from macaw_lit.precision import ExactConstants
from macaw_lit.types import Output
from macaw_lit.weights import Coverage


class LLM(ExactConstants, ABC):
    """A causal language model that is fed embeddings.

    Attributes:
        dim: D, the width of its embeddings.
        tokenizer: of the `transformers` kind, with BOS, EOS, padding and the delimiters of every modality.
        added: those of them that the tokenizer lacked when it was read.
        generation: what `generate` is given where its caller says nothing else.
    """

    dim: int
    tokenizer: Any
    added: Sequence[str] = ()
    generation: Mapping[str, Any] = MappingProxyType({"do_sample": False, "max_new_tokens": 64})

    @property
    @abstractmethod
    def table(self) -> Float[Tensor, "v d"]:
        """The whole input embedding matrix."""

    @abstractmethod
    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Look tokens up in the table."""

    @abstractmethod
    def forward(
        self,
        embeds: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b t"],
        labels: Int[Tensor, "b t"] | None = None,
        positions: Int[Tensor, "b t"] | None = None,
    ) -> Output:
        """With labels, the NLL summed over the response tokens and their count (Eq. 6); without, the logits.

        `positions` are of packed rows: each 0 begins a sample that sees itself alone. The first label of a sample is
        `IGNORE`.
        """

    def check_packing(self) -> None:
        """Whether `forward` keeps packed samples apart.

        Raises:
            ConfigError: it does not.
        """
        raise ConfigError(f"{type(self).__name__} cannot keep packed samples apart: set data.pack_rows=false")

    @abstractmethod
    def generate(
        self, embeds: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], **generation: Any
    ) -> Int[Tensor, "b new"]:
        """Continue left-padded rows; only new ids are returned, padded after EOS."""

    @abstractmethod
    def load_pretrained(self, source: str) -> Coverage:
        """Copy the weights in the folder `source` into this module, and report on every one of them."""

    @abstractmethod
    def save_config(self, folder: Path) -> dict[str, Any]:
        """Write the tokenizer into `folder` and return the arguments that rebuild this LLM from there."""
