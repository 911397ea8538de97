"""Any causal language model of transformers, with its tokenizer."""

import copy
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, logging

from macaw_lit.deferred import deferred, materialised
from macaw_lit.errors import ConfigError, WeightsError, did_you_mean, in_one_line, of_folder
from macaw_lit.hub import local_folder
from macaw_lit.llms.base import LLM
from macaw_lit.types import IGNORE, Output
from macaw_lit.weight_files import read_deferred
from macaw_lit.weights import Coverage, check_facts, load_exactly

logging.set_verbosity_error()
logging.disable_progress_bar()  # or two bars stand above every error

# Without the second, transformers asks on the terminal whether to run the code that a folder brings along.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Constants that older versions of transformers stored among the weights."""
# Settings that change what is computed from the same weights; then some that only sound like it.
_FACTS = re.compile(r"act|n_head|heads|eps|norm|rope|rotary|scal|window|layer_types|softcap|multiplier|residual|alibi")
_NO_FACTS = re.compile(r"dropout|summary|classifier|token")
# What is packed reaches them as positions that begin anew, from which transformers makes the mask; others of its
# models take the positions and let samples see each other all the same, or have a state that goes on (Mamba, RWKV).
PACKABLE = (
    *("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj", "granite", "llama"),
    *("mistral", "olmo", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"),
)
_WANTED = "expected a model_type of transformers such as llama, and sizes that it can have"


class HFCausalLM(LLM):
    """A `transformers` causal LM built from sizes; `load_pretrained` brings weights.

    Args:
        config: a `transformers` configuration as a dict with `model_type`, or the folder or hub id of a model to take
            it from. The vocabulary grows to the tokenizer's where it is smaller.
        tokenizer: folder or hub id of a `transformers` tokenizer. One without BOS takes EOS for it, as GPT-2 and
            GPT-NeoX do: the token that every document came after. One without a padding token of its own gets one.
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
        self.tokenizer, self.added = _read_tokenizer(tokenizer, delimiters)
        hf_config = _read_config(config)
        hf_config.vocab_size = max(1 + max(self.tokenizer.get_vocab().values()), hf_config.vocab_size)
        for name in ("bos", "eos", "pad"):
            setattr(hf_config, f"{name}_token_id", getattr(self.tokenizer, f"{name}_token_id"))
        self.config_dict = {name: value for name, value in hf_config.to_dict().items() if name != "_name_or_path"}
        self.model = _build(hf_config)
        if embedding_std is not None:
            nn.init.normal_(self.model.get_input_embeddings().weight, std=embedding_std)
        self.dim = self.table.shape[1]

    @property
    def table(self) -> Float[Tensor, "v d"]:
        embedding = self.model.get_input_embeddings()
        weight: Tensor = embedding.weight
        scale = getattr(embedding, "embed_scale", None)  # a tensor in Gemma, a number in XGLM
        if scale is None:
            return weight
        return weight * (scale.to(weight.dtype) if isinstance(scale, Tensor) else scale)

    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        return embeds

    def forward(
        self,
        embeds: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b t"],
        labels: Int[Tensor, "b t"] | None = None,
        positions: Int[Tensor, "b t"] | None = None,
    ) -> Output:
        if labels is None:
            return Output(logits=self._logits(embeds, mask, positions))
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)  # position t predicts token t + 1
        learned = targets != IGNORE
        # The head is the widest layer and most positions bear no loss. It is fed fewer positions within the model's own
        # forward, and not called from here, because Gemma 2, Granite and others rescale or cap what it gives.
        feed = self.model.get_output_embeddings().register_forward_pre_hook(lambda _, hidden: hidden[0][learned])
        try:
            logits = self._logits(embeds, mask, positions)
        finally:
            feed.remove()
        nll = F.cross_entropy(logits.float(), targets[learned], reduction="sum")
        return Output(nll=nll, tokens=learned.sum())

    def _logits(self, embeds: Tensor, mask: Tensor, positions: Tensor | None) -> Tensor:
        if positions is None:
            kept: dict[str, Any] = {"attention_mask": mask.long()}
        else:  # transformers looks for samples in the positions only where there is no mask
            self.check_packing()
            kept = {"position_ids": positions}
        logits: Tensor = self.model(inputs_embeds=embeds, use_cache=False, **kept).logits
        return logits

    def check_packing(self) -> None:
        config = self.model.config
        if config.model_type not in PACKABLE:
            raise ConfigError(
                f"a language model of type {config.model_type} is not known to keep packed samples apart: set "
                f"data.pack_rows=false, or take one of {', '.join(PACKABLE)}"
            )
        if config._attn_implementation not in ("sdpa", "eager"):
            raise ConfigError(
                f"attn_implementation={config._attn_implementation} is not known to keep packed samples apart: "
                "expected sdpa or eager, or set data.pack_rows=false"
            )

    def generate(
        self, embeds: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], **generation: Any
    ) -> Int[Tensor, "b new"]:
        settings = generation if generation.get("generation_config") else {**self.generation, **generation}
        try:
            new_ids: Tensor = self.model.generate(inputs_embeds=embeds, attention_mask=mask.long(), **settings)
        except (ValueError, TypeError) as error:  # what transformers raises for settings, which a folder may bring too
            given = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise ConfigError(
                f"generating with {given}: {in_one_line(error)}; expected what GenerationConfig of transformers knows"
            ) from error
        return new_ids

    def load_pretrained(self, source: str) -> Coverage:
        """Copy the weights of a `transformers` model folder or hub id; rows of added tokens become the others' mean.

        Raises:
            WeightsError: the folder holds no such model, weights of it did not arrive, it has more than the model,
                or its config states another activation, number of heads, rotation or the like.
        """
        folder = local_folder(source)
        try:
            found = _read_model(folder)
        except WeightsError:
            raise
        except Exception as error:  # transformers has no class for what may be wrong with a folder
            raise WeightsError(f"{source} holds no causal LM of transformers: {of_folder(error)}") from error
        loaded, report = found
        stated, own = _facts(loaded.config), _facts(self.model.config)
        checked = check_facts(stated, own, source, "configure what it says, or give the folder as config")
        dead = [key for key in report["unexpected_keys"] if key.endswith(_BUFFERS)]
        Coverage(
            source=source,
            missing=tuple(sorted(report["missing_keys"])),
            unexpected=tuple(sorted(report["unexpected_keys"] - set(dead))),
            mismatched=tuple(
                sorted(f"{key} {[*found]}, wanted {[*own]}" for key, found, own in report["mismatched_keys"])
            ),
        ).insist(self.model)
        for matrix in {loaded.get_input_embeddings(), loaded.get_output_embeddings()}:
            for name, rows in dict(matrix.named_parameters(recurse=False)).items():
                setattr(matrix, name, nn.Parameter(self._with_new_rows(rows.detach())))
        return load_exactly(self.model, loaded.state_dict(), source, dead, checked)

    def _with_new_rows(self, rows: Tensor) -> Tensor:
        """`rows` of a vocabulary's matrix or bias, grown to this one's; those of added tokens are the others' mean."""
        length = max(len(rows), self.table.shape[0])
        # Some vocabularies have rows to spare beyond their tokenizer, and those are noise.
        spare = {row for row in self.tokenizer.convert_tokens_to_ids(self.added) if row < len(rows)}
        new = torch.tensor([*spare, *range(len(rows), length)], dtype=torch.long)
        known = torch.tensor([row not in spare for row in range(len(rows))])

        def grown() -> Tensor:
            old = materialised(rows)
            found = old.new_empty(length, *old.shape[1:])
            found[: len(old)] = old
            found[new] = old[known].mean(0)
            return found

        return deferred(grown, torch.empty(length, *rows.shape[1:], dtype=rows.dtype, device="meta"))

    def save_config(self, folder: Path) -> dict[str, Any]:
        self.tokenizer.save_pretrained(folder)
        return {"config": self.config_dict}


def _read_tokenizer(source: str, delimiters: Sequence[str]) -> tuple[Any, list[str]]:
    """The tokenizer with all control tokens, and those of them that it lacked."""
    folder = local_folder(source, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except Exception as error:
        raise ConfigError(f"{source} holds no tokenizer: expected tokenizer.json and tokenizer_config.json") from error
    if tokenizer.eos_token is None:
        raise ConfigError(f"the tokenizer {source} has no EOS token, so no answer would end: set eos_token")
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    before = tokenizer.get_vocab()
    if tokenizer.pad_token_id in (None, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(list(delimiters), special_tokens=True)
    control = [tokenizer.eos_token, tokenizer.pad_token, *delimiters]
    ids: Any = tokenizer.convert_tokens_to_ids(control)
    if len(set(ids)) < len(ids):
        raise ConfigError(
            f"control tokens of {source} share an id: {dict(zip(control, ids, strict=True))}; give each one of its own"
        )
    return tokenizer, [token for token in control if token not in before]


def _read_config(config: Mapping[str, Any] | str) -> Any:
    if isinstance(config, str):
        folder = local_folder(config, weights=False)
        try:
            return AutoConfig.from_pretrained(folder, **_LOCAL)
        except Exception as error:
            raise ConfigError(
                f"{config} holds no transformers config ({in_one_line(error)}): give a folder with config.json"
            ) from error
    sizes = {"vocab_size": 0, **config}
    try:
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    except Exception as error:  # nor for what may be wrong with a config
        raise ConfigError(f"llm config of {config.get('model_type')}: {in_one_line(error)}; {_WANTED}") from error


def check_sizes(config: object) -> None:
    """Refuse names among a user's sizes that transformers would keep and never read; a folder is as it is.

    Raises:
        ConfigError: neither the type's config nor its model's code knows one of them.
    """
    if not isinstance(config, Mapping) or "model_type" not in config:
        return
    made = _read_config(config)
    known, kept = type(made)().to_dict(), made.to_dict()  # older names are taken, but not kept
    unknown = [name for name in config if name in kept and name not in known]
    models: Any = AutoModelForCausalLM._model_mapping
    if unknown and type(made) in models:
        code = inspect.getsource(sys.modules[models[type(made)].__module__])
        for name in unknown:
            if not re.search(rf"\b{re.escape(name)}\b", code):
                at = "model.llm.config."
                raise ConfigError(f"{at}{name}: no such setting of {made.model_type}{did_you_mean(name, known, at)}")


def _read_model(folder: Path) -> tuple[Any, Any]:
    """A model of transformers whose weights are read when they are needed, and its report of which came."""
    weights = read_deferred(folder)
    config = AutoConfig.from_pretrained(folder, **_LOCAL)
    with torch.device("meta"):
        kind: Any = type(AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False))
    found: tuple[Any, Any] = kind.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        local_files_only=True,
    )
    return found


def _facts(config: Any) -> dict[str, Any]:
    settings = config.to_dict().items()
    return {name: value for name, value in settings if _FACTS.search(name) and not _NO_FACTS.search(name)}


def _build(config: Any) -> Any:
    try:
        # from_config writes into the object it is given, so it gets one of its own.
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(f"llm config of {config.model_type}: {in_one_line(error)}; {_WANTED}") from error
