"""From a model folder to answers: the arrow that prediction and evaluation share."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from macaw_lit.data.collate import Collator
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.prompt import Prompt
from macaw_lit.errors import ConfigError, WeightsError, in_one_line
from macaw_lit.model import Macaw
from macaw_lit.types import Sample

PREPROCESS_FILE = "preprocess.json"


class Answerer:
    """Answers dialogues that end with a user turn, greedily, in batches padded on the left.

    Args:
        model: in the mode and on the device that it is to answer with.
        preprocess: as in training.
        max_new_tokens: the longest answer.

    Raises:
        ConfigError: `max_new_tokens` is not positive.
    """

    def __init__(self, model: Macaw, preprocess: Preprocessor, max_new_tokens: int = 64) -> None:
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens}; expected at least 1, such as 64")
        self.model = model
        self.preprocess = preprocess
        self.max_new_tokens = max_new_tokens
        self._collate = Collator(preprocess.pad, preprocess.specs, "left")

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        """One answer per sample, in order.

        Raises:
            SampleError: a sample does not fit, or one of its media is unusable.
        """
        batch = self._collate([self.preprocess(sample, predict=True) for sample in samples])
        batch = batch.to(self.model.llm.table.device)
        ids = self.model.generate(batch, max_new_tokens=self.max_new_tokens, do_sample=False)
        tokenizer = self.model.llm.tokenizer
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def save_folder(folder: Path, model: Macaw, preprocess: Preprocessor) -> None:
    """Write the model folder: what `load_answerer` needs, and nothing of the run that made it."""
    model.save_pretrained(folder)
    settings = {
        "order": list(preprocess.order),
        "layout": preprocess.layout,
        "max_length": preprocess.max_length,
        "prompt": asdict(preprocess.prompt),
    }
    (folder / PREPROCESS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_answerer(folder: Path, device: str = "cpu", max_new_tokens: int = 64) -> Answerer:
    """Read a model folder.

    Raises:
        WeightsError: the folder is no model folder, or a file of it is damaged.
        ConfigError: this machine has no such device.
    """
    model = Macaw.from_pretrained(folder)
    try:
        model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ConfigError(f"device={device} ({in_one_line(error)}); expected cpu, or cuda with a GPU") from error
    path = folder / PREPROCESS_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        prompt = Prompt(**settings.pop("prompt"))
        preprocess = Preprocessor(model.llm.tokenizer, model.specs(), prompt=prompt, **settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise WeightsError(
            f"{path} cannot be used ({in_one_line(error)}): copy the whole model folder again"
        ) from error
    return Answerer(model, preprocess, max_new_tokens)
