"""Questions that are heard and not read: from a file of either format to a step of training, and from messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.sources import macaw, messages
from macaw_lit.errors import SampleError
from macaw_lit.model import Macaw
from macaw_lit.processor import MacawProcessor
from macaw_lit.types import Sample


@pytest.fixture
def rows(tmp_path: Path) -> list[list[Sample]]:
    """The same two spoken questions as Macaw-LLM's rows and as messages."""
    draw = np.random.default_rng(0)
    for name in ("high.wav", "low.wav"):
        soundfile.write(tmp_path / name, draw.uniform(-0.5, 0.5, 2560), 16_000)
    pairs = {"high.wav": "It is high.", "low.wav": "It is low."}
    plain = [{"id": name, "spoken": True, "response": said} for name, said in pairs.items()]
    (tmp_path / "macaw.json").write_text(json.dumps({"data": plain}))
    talks = [
        [{"role": "user", "content": [{"type": "audio", "path": name}]}, {"role": "assistant", "content": said}]
        for name, said in pairs.items()
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    found = [macaw.read(tmp_path / "macaw.json", tmp_path, "audio"), messages.read(tmp_path / "chat.jsonl", tmp_path)]
    samples = [[row for row in each if isinstance(row, Sample)] for each in found]
    assert list(map(len, samples)) == [2, 2]
    return samples


@pytest.fixture
def processor(model: Macaw) -> MacawProcessor:
    return MacawProcessor(Preprocessor(model.llm.tokenizer, model.specs(), max_length=200))


@pytest.mark.parametrize("place", [0, 1])
def test_a_step_of_training_learns_from_the_sound(model: Macaw, processor: MacawProcessor, rows, place: int) -> None:
    batch = processor.batch(rows[place], predict=False)
    assert torch.equal(batch.input_ids[0, :20], batch.input_ids[1, :20])  # nothing but the sound tells the two apart
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model(batch)
    before.nll.backward()
    part = model.modalities["audio"]
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in part.parameters())
    optimizer.step()
    assert model(batch).nll < before.nll  # a small step down the gradient


def test_messages_of_transformers_are_the_same_rows(processor: MacawProcessor, rows, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": [{"type": "audio", "path": str(tmp_path / "high.wav")}]}]
    batch = processor.apply_chat_template(talk)
    assert torch.equal(batch.input_ids, processor.batch(rows[0][:1]).input_ids)
    for parts in ([{"type": "text", "text": ""}, talk[0]["content"][0]], []):
        with pytest.raises(SampleError, match="the instruction is empty"):
            processor.apply_chat_template([{"role": "user", "content": parts}])
