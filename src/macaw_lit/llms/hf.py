"""Any causal language model of transformers, with its tokenizer."""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.llms.base import LLM
from macaw_lit.types import IGNORE, Output
from macaw_lit.weights import load_exactly

logging.getLogger("transformers").setLevel(logging.ERROR)


class HFCausalLM(LLM):
    """A `transformers` causal LM built from sizes; `load_pretrained` brings weights.

    Args:
        config: a `transformers` configuration as a dict with `model_type`, or the folder of a model to take it from.
            The vocabulary grows to the tokenizer's where it is smaller.
        tokenizer: folder of a `transformers` tokenizer.
        delimiters: tokens around media, such as `<image>` and `</image>`; those that the tokenizer lacks are added.
    """

    def __init__(self, config: Mapping[str, Any] | str, tokenizer: str, delimiters: Sequence[str] = ()) -> None:
        super().__init__()
        self.tokenizer = _read_tokenizer(tokenizer, delimiters)
        hf_config = _read_config(config)
        hf_config.vocab_size = max(len(self.tokenizer), hf_config.vocab_size)
        for name in ("bos", "eos", "pad"):
            setattr(hf_config, f"{name}_token_id", getattr(self.tokenizer, f"{name}_token_id"))
        self.config_dict: dict[str, Any] = hf_config.to_dict()
        # from_config writes into the object it is given, so it gets one of its own.
        self.model = AutoModelForCausalLM.from_config(copy.deepcopy(hf_config), dtype=torch.float32)
        self.dim = self.table.shape[1]

    @property
    def table(self) -> Float[Tensor, "v d"]:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        return embeds

    def forward(
        self, embeds: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], labels: Int[Tensor, "b t"] | None = None
    ) -> Output:
        hidden = self.model.base_model(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False)[0]
        head = self.model.get_output_embeddings()
        if labels is None:
            return Output(logits=head(hidden))
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)  # position t predicts token t + 1
        learned = targets != IGNORE
        logits = head(hidden[learned])  # the head is the widest layer, and most positions bear no loss
        nll = F.cross_entropy(logits.float(), targets[learned], reduction="sum")
        return Output(nll=nll, tokens=learned.sum())

    def generate(
        self, embeds: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], **generation: Any
    ) -> Int[Tensor, "b new"]:
        new_ids: Tensor = self.model.generate(inputs_embeds=embeds, attention_mask=mask.long(), **generation)
        return new_ids

    def load_pretrained(self, source: str) -> None:
        """Copy the weights of a `transformers` model folder; rows of added delimiters become the mean of the table.

        Raises:
            WeightsError: the folder holds no such model, or weights of it did not arrive.
        """
        try:
            found: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise WeightsError(f"{source} is no folder of a transformers causal LM: {first}") from error
        loaded, report = found
        lost = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if lost:
            raise WeightsError(f"{source} lacks {len(lost)} weights, among them {', '.join(lost[:5])}: fetch it again")
        vocabulary = self.table.shape[0]
        for matrix in {loaded.get_input_embeddings(), loaded.get_output_embeddings()}:
            added = vocabulary - matrix.weight.shape[0]
            mean = matrix.weight.data.mean(0, keepdim=True)
            matrix.weight.data = torch.cat([matrix.weight.data, mean.expand(added, -1)])
        load_exactly(self.model, loaded.state_dict(), source)

    def save_config(self, folder: Path) -> dict[str, Any]:
        self.tokenizer.save_pretrained(folder)
        return {"config": self.config_dict}


def _read_tokenizer(folder: str, delimiters: Sequence[str]) -> Any:
    if not Path(folder).is_dir():
        raise ConfigError(f"tokenizer folder {folder} not found: give a folder with tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no tokenizer: expected tokenizer.json and tokenizer_config.json") from error
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    known = tokenizer.get_vocab()
    added = [token for token in delimiters if token not in known]
    if added:
        tokenizer.add_tokens(added, special_tokens=True)
    return tokenizer


def _read_config(config: Mapping[str, Any] | str) -> Any:
    if isinstance(config, str):
        try:
            return AutoConfig.from_pretrained(config, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{config} holds no transformers config: expected a folder with config.json") from error
    sizes = {"vocab_size": 0, **config}
    try:
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"llm config {dict(config)}: expected a model_type of transformers such as llama") from error
