"""Any causal language model of transformers, with its tokenizer."""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from macaw_lit.errors import ConfigError, WeightsError, in_one_line
from macaw_lit.llms.base import LLM
from macaw_lit.types import IGNORE, Output
from macaw_lit.weights import load_exactly

logging.getLogger("transformers").setLevel(logging.ERROR)

# Without the second, transformers asks on the terminal whether to run the code that a folder brings along.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_WANTED = "expected a model_type of transformers such as llama, and sizes that it can have"


class HFCausalLM(LLM):
    """A `transformers` causal LM built from sizes; `load_pretrained` brings weights.

    Args:
        config: a `transformers` configuration as a dict with `model_type`, or the folder of a model to take it from.
            The vocabulary grows to the tokenizer's where it is smaller.
        tokenizer: folder of a `transformers` tokenizer.
        delimiters: tokens around media, such as `<image>` and `</image>`; those that the tokenizer lacks are added.
        embedding_std: spread that fresh embeddings start with; None leaves it to the architecture. With 1.0 a small
            model learns from scratch in far fewer steps: what a token is outweighs what untrained layers add to it.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str,
        tokenizer: str,
        delimiters: Sequence[str] = (),
        embedding_std: float | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = _read_tokenizer(tokenizer, delimiters)
        hf_config = _read_config(config)
        hf_config.vocab_size = max(len(self.tokenizer), hf_config.vocab_size)
        for name in ("bos", "eos", "pad"):
            setattr(hf_config, f"{name}_token_id", getattr(self.tokenizer, f"{name}_token_id"))
        self.config_dict: dict[str, Any] = hf_config.to_dict()
        self.model = _build(hf_config)
        if embedding_std is not None:
            nn.init.normal_(self.table, std=embedding_std)
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
        if not Path(source).is_dir():
            raise WeightsError(f"model folder {source} not found: give a folder with config.json and model.safetensors")
        try:
            found: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **_LOCAL
            )
        except Exception as error:  # transformers has no class for what may be wrong with a folder
            raise WeightsError(
                f"{source} holds no causal LM of transformers ({in_one_line(error)}): fetch it again"
            ) from error
        loaded, report = found
        lost = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if lost:
            raise WeightsError(f"{source} lacks {len(lost)} weights, among them {', '.join(lost[:5])}: fetch it again")
        vocabulary = self.table.shape[0]
        for matrix in {loaded.get_input_embeddings(), loaded.get_output_embeddings()}:
            added = max(0, vocabulary - matrix.weight.shape[0])
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
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except Exception as error:
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
            return AutoConfig.from_pretrained(config, **_LOCAL)
        except Exception as error:
            raise ConfigError(
                f"{config} holds no transformers config ({in_one_line(error)}): give a folder with config.json"
            ) from error
    sizes = {"vocab_size": 0, **config}
    try:
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    except Exception as error:  # nor for what may be wrong with a config
        raise ConfigError(f"llm config {dict(config)}: {in_one_line(error)}; {_WANTED}") from error


def _build(config: Any) -> Any:
    try:
        # from_config writes into the object it is given, so it gets one of its own.
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(f"llm config of {config.model_type}: {in_one_line(error)}; {_WANTED}") from error
