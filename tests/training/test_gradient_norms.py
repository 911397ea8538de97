"""Gradient norms against those of the same step taken by hand."""

import pytest
import torch
from torch.utils.data import DataLoader

from macaw_lit.training.gradient_norms import GradientNorms
from macaw_lit.training.module import MacawModule
from macaw_lit.training.optim import adamw


def module_of(sizes, **adapt) -> MacawModule:
    return MacawModule(sizes, lambda model: adamw(model, lr=0.01, weight_decay=0.0), adapt=adapt)


def test_norms_before_clipping_of_every_part(sizes, model, make_batch, make_trainer, logged):
    batch = make_batch(model, [(1, {"image": 2}), (2, {"audio": 1}), (3, {})])
    module = module_of(sizes)
    trainer = make_trainer(GradientNorms(), max_steps=2, log_every_n_steps=2, logger=logged, gradient_clip_val=1e-3)
    states = []
    module.on_train_batch_start = lambda batch, batch_idx: states.append(
        {name: value.clone() for name, value in module.model.state_dict().items()}
    )
    trainer.fit(module, DataLoader([batch] * 2, batch_size=None))
    norms = logged.under("gradient/")
    assert list(norms) == [1]
    model.load_state_dict(states[1])
    output = model.train()(batch)
    (output.nll / output.tokens).backward()
    parts = {"vision": model.encoders["vision"], "hearing": model.encoders["hearing"], "llm": model.llm}
    parts |= {f"aligner_{kind}": modality.aligner for kind, modality in model.modalities.items()}
    assert norms[1].keys() == {f"gradient/{name}" for name in parts}
    for name, part in parts.items():
        squares = sum(float(p.grad.double().square().sum()) for p in part.parameters() if p.grad is not None)
        # float32 over ten thousand values; a kind that is not there has a gradient of zero
        assert norms[1][f"gradient/{name}"] == pytest.approx(squares**0.5, rel=1e-4, abs=1e-9)
    assert norms[1]["gradient/llm"] > 0.01
    assert norms[1]["gradient/aligner_video"] == 0


def test_frozen_parts_are_left_out(sizes, model, make_batch, make_trainer, logged):
    batch = make_batch(model, [(1, {"image": 2}), (2, {"audio": 1})])
    trainer = make_trainer(GradientNorms(), max_steps=1, log_every_n_steps=1, logger=logged)
    trainer.fit(module_of(sizes, llm="frozen", vision="frozen"), DataLoader([batch], batch_size=None))
    named = {name for step in logged.under("gradient/").values() for name in step}
    assert named == {"gradient/hearing", *(f"gradient/aligner_{kind}" for kind in ("image", "video", "audio"))}
    assert torch.isfinite(torch.tensor([value for step in logged.steps.values() for value in step.values()])).all()
