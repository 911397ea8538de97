"""The loss by kinds against the loss of batches that hold one kind of row alone."""

import pytest
import torch
from torch.utils.data import DataLoader

from macaw_lit.errors import ConfigError
from macaw_lit.training.metrics import MetricsFile
from macaw_lit.training.modality_loss import ModalityLoss
from macaw_lit.training.module import MacawModule
from macaw_lit.training.optim import adamw
from macaw_lit.types import IGNORE

ROWS = {
    "text": [(1, {}), (2, {})],
    "image": [(3, {"image": 2}), (4, {"image": 1})],
    "video_audio": [(5, {"video": 1, "audio": 1})],
}


def module_of(sizes) -> MacawModule:
    return MacawModule(sizes, lambda model: adamw(model, lr=1e-30, weight_decay=0.0))


@pytest.mark.parametrize("row_length", [None, 60])
def test_each_combination_has_the_mean_of_its_tokens(sizes, model, make_batch, make_trainer, logged, row_length):
    batches = [
        make_batch(model, [row for rows in ROWS.values() for row in rows], row_length=row_length),
        make_batch(model, [(6, {"image": 1}), (7, {})], row_length=row_length),
    ]
    assert [len(batch.input_ids) for batch in batches] == ([5, 2] if row_length is None else [2, 1])
    module = module_of(sizes)
    trainer = make_trainer(ModalityLoss(), max_steps=4, log_every_n_steps=2, logger=logged)
    validation = make_batch(model, [(8, {"audio": 1})])
    trainer.fit(module, DataLoader(batches * 2, batch_size=None), DataLoader([validation], batch_size=None))
    found = logged.under("loss/")
    assert sorted(found) == [1, 3]
    rows = {**ROWS, "image": [*ROWS["image"], (6, {"image": 1})], "text": [*ROWS["text"], (7, {})]}
    for losses in found.values():
        assert losses.keys() == {f"loss/{kinds}" for kinds in rows}
        for kinds, alone in rows.items():
            with torch.no_grad():
                outputs = [module.model(make_batch(model, [row])) for row in alone]  # the learning rate is 0
            wanted = sum(float(output.nll) for output in outputs) / sum(int(output.tokens) for output in outputs)
            assert losses[f"loss/{kinds}"] == pytest.approx(wanted, rel=1e-4)  # float32, other paddings
    assert not module.model.llm.model._forward_hooks


def test_what_did_not_occur_is_not_said_again(sizes, model, make_batch, make_trainer, logged):
    batches = [make_batch(model, rows) for rows in (ROWS["image"], ROWS["text"], ROWS["image"])]
    trainer = make_trainer(ModalityLoss(), max_steps=3, log_every_n_steps=1, logger=logged)
    trainer.fit(module_of(sizes), DataLoader(batches, batch_size=None))
    assert [[*losses] for losses in logged.under("loss/").values()] == [["loss/image"], ["loss/text"], ["loss/image"]]
    assert {"loss/image", "loss/text"} <= trainer.callback_metrics.keys(), "the last of each, for a search to go by"


def test_rows_without_a_response_leave_no_empty_row(sizes, model, make_batch, make_trainer, tmp_path):
    batch = make_batch(model, ROWS["image"])
    batch.labels[:] = IGNORE
    file = MetricsFile(str(tmp_path))
    make_trainer(ModalityLoss(), max_steps=1, log_every_n_steps=1, logger=file).fit(
        module_of(sizes), DataLoader([batch], batch_size=None)
    )
    assert file.rows == 1, "Lightning's, of the loss over all"


def test_training_is_the_same_to_the_bit(sizes, model, make_batch, make_trainer, logged):
    losses = []
    for callbacks in ([], [ModalityLoss()]):
        logged.steps.clear()
        torch.manual_seed(3)
        module = MacawModule(sizes, lambda model: adamw(model, lr=0.01, weight_decay=0.0))
        batch = make_batch(model, [row for rows in ROWS.values() for row in rows])
        make_trainer(*callbacks, max_steps=3, log_every_n_steps=1, logger=logged).fit(
            module, DataLoader([batch] * 3, batch_size=None)
        )
        losses.append([step["train/loss"] for step in logged.steps.values()])
    assert losses[0] == losses[1]


def test_a_language_model_without_logits_is_refused(sizes, make_trainer):
    module = module_of(sizes)
    module.configure_model()
    module.model.llm = torch.nn.Identity()
    with pytest.raises(ConfigError, match="reads logits of HFCausalLM, not of Identity"):
        ModalityLoss().on_train_start(make_trainer(), module)
