"""Saving, loading and publishing a model as a folder."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import nn

from macaw_lit.card import model_card
from macaw_lit.data.chat_template import chat_template
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.encoders.base import Encoder
from macaw_lit.errors import ConfigError, MacawError, WeightsError
from macaw_lit.folder_files import (
    CARD_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_FOLDER,
    load_weights,
    read_config,
    read_preprocess,
    vocabulary_sha256,
    whole,
    write_json,
    write_model,
    write_preprocess,
)
from macaw_lit.hub import local_folder, push
from macaw_lit.llms.base import LLM
from macaw_lit.precision import ExactConstants, cast_constants
from macaw_lit.types import MediaSpec
from macaw_lit.weights import read_facts

Model = TypeVar("Model", bound="ModelFolder")


class ModelFolder(nn.Module):
    """What makes a model a folder and a folder a model; `folder_files.py` lists the files.

    Attributes:
        llm: the language model, which brings the tokenizer.
        config: what `from_config` builds the same model from.
        preprocess: how dialogues become rows, as in the folder that the model came from; None if it came from none.
    """

    llm: LLM
    config: dict[str, Any]
    preprocess: Preprocessor | None = None

    @classmethod
    def from_config(cls: type[Model], config: Mapping[str, Any]) -> Model:
        """Build from sizes, without weights."""
        raise AssertionError(cls)

    def specs(self) -> dict[str, MediaSpec]:
        """What the data side must know of each modality."""
        raise AssertionError(self)

    def save_pretrained(
        self, folder: Path | str, preprocess: Preprocessor | None = None, max_shard_size: str = "5GB"
    ) -> None:
        """Write all that a predictor needs, whole or not at all.

        Args:
            preprocess: as in training; None takes that of the folder the model came from, or the defaults.
            max_shard_size: above it the weights are written as several files.

        Raises:
            ConfigError: LoRA is not merged, or `folder` is a file.
        """
        if any("lora_" in name for name, _ in self.named_parameters()):
            raise ConfigError("the model has LoRA beside its weights: merge them first, with training.adapt.merge")
        specs, tokenizer = self.specs(), self.llm.tokenizer
        preprocess = preprocess or self.preprocess or Preprocessor(tokenizer, specs, order=list(specs))
        tokenizer.chat_template = chat_template(preprocess)
        with whole(Path(folder)) as new:
            part = self.llm.save_config(new / TOKENIZER_FOLDER)
            llm = {**self.config["llm"], **part, "tokenizer": TOKENIZER_FOLDER}
            facts = {"vocabulary": vocabulary_sha256(tokenizer)}
            encoders = {
                name: {**self.config["encoders"][name], **encoder.save_config()}
                for name, encoder in self.get_submodule("encoders").named_children()
                if isinstance(encoder, Encoder)
            }
            write_model(new, self, {**self.config, "encoders": encoders, "llm": llm}, facts, max_shard_size)
            write_preprocess(new, preprocess)
            write_json(new / GENERATION_FILE, dict(self.llm.generation))
            (new / CARD_FILE).write_text(model_card(self, self.config, preprocess), encoding="utf-8")

    @classmethod
    def from_pretrained(cls: type[Model], source: Path | str, dtype: torch.dtype | None = None) -> Model:
        """Read a folder, or hub id, that `save_pretrained` wrote, ready to predict.

        Args:
            dtype: of the weights; None leaves them in the precision they were saved in.

        Raises:
            WeightsError: the folder is no model folder, or its weights do not fit its config.
        """
        folder = Path(source)
        if isinstance(source, str) and not folder.exists():
            folder = local_folder(source)
        with init_empty_weights(include_buffers=False):  # the weights take their places; no others are drawn first
            model, facts = cls.blueprint(folder)
        load_weights(folder, model, facts)
        model.llm.generation = read_facts(folder / GENERATION_FILE) or model.llm.generation
        if dtype is not None:
            return model.eval().to(dtype)
        for part in model.modules():
            if isinstance(part, ExactConstants):  # the file does not hold constants, which were built in fp32
                cast_constants(part, next(part.parameters()).dtype)
        return model.eval()

    @classmethod
    def blueprint(cls: type[Model], folder: Path) -> tuple[Model, dict[str, Any]]:
        """The model that a folder describes, as it is built, and what the config says of the weights it should have.

        Raises:
            WeightsError: the folder is no model folder.
        """
        config = read_config(folder)
        facts = config.pop("weights", {})
        llm = config.get("llm")
        if isinstance(llm, dict):
            llm["tokenizer"] = str(folder / TOKENIZER_FOLDER)
            if isinstance(llm.get("config"), str):  # a folder of a stranger must not send us elsewhere
                raise WeightsError(f"{folder / CONFIG_FILE}: llm.config is {llm['config']!r}; expected sizes")
        try:
            model = cls.from_config(config)
        except MacawError as error:
            raise WeightsError(f"{folder / CONFIG_FILE}: {error}") from error
        if model.llm.added:
            lost = ", ".join(model.llm.added)
            raise WeightsError(f"{folder / TOKENIZER_FOLDER} lacks {lost}: copy the whole model folder again")
        if vocabulary_sha256(model.llm.tokenizer) != facts.get("vocabulary"):
            found = f"{folder / TOKENIZER_FOLDER} is not the tokenizer that was saved (its vocabulary differs)"
            raise WeightsError(f"{found}: copy the whole model folder again")
        model.preprocess = read_preprocess(folder, model.llm.tokenizer, model.specs())
        return model, facts

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Upload the model folder to the hub; returns the commit's address.

        Raises:
            WeightsError: the hub cannot be reached or does not accept it.
        """
        with TemporaryDirectory() as made:
            self.save_pretrained(Path(made) / "model")
            return push(Path(made) / "model", repo_id, private, token)
