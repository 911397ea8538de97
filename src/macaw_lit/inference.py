"""From a model folder to answers: the arrow that prediction and evaluation share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import ConfigError, in_one_line
from macaw_lit.model import Macaw
from macaw_lit.processor import MacawProcessor
from macaw_lit.types import Sample


class Answerer:
    """Answers dialogues that end with a user turn, greedily, in batches padded on the left.

    Args:
        model: in the mode and on the device that it is to answer with.
        preprocess: as in training.
        max_new_tokens: the longest answer; None takes what the model folder says.

    Raises:
        ConfigError: `max_new_tokens` is not positive.
    """

    def __init__(self, model: Macaw, preprocess: Preprocessor, max_new_tokens: int | None = None) -> None:
        if max_new_tokens is not None and (not isinstance(max_new_tokens, int) or max_new_tokens < 1):
            raise ConfigError(f"max_new_tokens={max_new_tokens}; expected at least 1, such as 64")
        self.model = model
        self.preprocess = preprocess
        self.processor = MacawProcessor(preprocess)
        self.limit: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        """One answer per sample, in order.

        Raises:
            SampleError: a sample does not fit, or one of its media is unusable.
        """
        batch = self.processor.batch(samples).to(self.model.device)
        ids = self.model.generate(batch, do_sample=False, **self.limit)
        return self.processor.batch_decode(ids)


def load_answerer(source: Path | str, device: str = "cpu", max_new_tokens: int | None = None) -> Answerer:
    """Read a model folder, or one of the hub by its id.

    Raises:
        WeightsError: the folder is no model folder, or a file of it is damaged.
        ConfigError: this machine has no such device.
    """
    model = Macaw.from_pretrained(source)
    assert model.preprocess is not None
    try:
        model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ConfigError(f"device={device} ({in_one_line(error)}); expected cpu, or cuda with a GPU") from error
    return Answerer(model, model.preprocess, max_new_tokens)
