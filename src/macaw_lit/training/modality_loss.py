"""The training loss by the kinds of media that samples carry."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from macaw_lit.errors import ConfigError
from macaw_lit.llms.hf import HFCausalLM
from macaw_lit.model import Macaw
from macaw_lit.training.module import MacawModule
from macaw_lit.types import IGNORE, Batch


class ModalityLoss(Callback):
    """Logs `loss/<kinds>` each time the trainer logs: the mean over response tokens of samples that carry these kinds.

    Names are such as `loss/text`, `loss/image` and `loss/video_audio`; the mean is over all steps since the last time
    and all processes, and a combination that did not occur is left out. The logits are those of the training step; only
    their cross entropy is worked out once more, without a gradient, in memory for V floats per response token.

    Raises:
        ConfigError: when training starts, of a language model that is not one of transformers.
    """

    figures = "loss/"  # what the names of all that it measures begin with

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None
        self._batch: Batch | None = None
        self._logged = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        language = _model(pl_module).llm
        if not isinstance(language, HFCausalLM):
            raise ConfigError(
                f"ModalityLoss reads logits of HFCausalLM, not of {type(language).__name__}: leave it out"
            )
        self._hook = language.model.register_forward_hook(self._take)
        self._logged = trainer.global_step
        self._restart(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._batch = batch

    @torch.no_grad()
    def _take(self, _: Any, __: Any, output: Any) -> None:
        """Adds up what one forward pass of the language model says of the batch that is trained on."""
        batch = self._batch
        if batch is None or batch.labels is None:  # validation
            return
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)  # position t predicts token t + 1
        learned = targets != IGNORE
        nll = F.cross_entropy(output.logits.float(), targets[learned], reduction="none")
        samples = batch.samples.flatten()
        slots = torch.stack([media.slots.flatten() for media in batch.media.values()]).long()  # [kinds, B·T]
        carried = torch.zeros_like(slots).scatter_reduce_(1, samples.expand_as(slots), slots, "amax")  # by sample
        code = (carried << torch.arange(len(carried), device=carried.device)[:, None]).sum(0)
        codes = code[samples].view_as(learned)[learned]
        self._nll.index_add_(0, codes, nll)
        self._tokens.index_add_(0, codes, torch.ones_like(nll))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._batch = None
        step = trainer.global_step
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # assigned by a connector
        if not interval or step % interval or step == self._logged:
            return
        self._logged = step
        summed: Any = trainer.strategy.reduce(torch.stack([self._nll, self._tokens]), reduce_op="sum")
        kinds, losses = list(batch.media), {}
        for code, (nll, tokens) in enumerate(summed.T.tolist()):
            if tokens:
                carried = [kind for place, kind in enumerate(kinds) if code >> place & 1]
                losses[f"loss/{'_'.join(carried) or 'text'}"] = nll / tokens
        # Not by `log`, which says a value again at later steps that do not have one; numbered as `log` does.
        trainer.callback_metrics.update({name: torch.tensor(loss) for name, loss in losses.items()})
        for logger in trainer.loggers if losses else ():
            logger.log_metrics(losses, step - 1)
        self._restart(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _restart(self, pl_module: LightningModule) -> None:
        combinations = 2 ** len(_model(pl_module).modalities)
        self._nll: Tensor = torch.zeros(combinations, device=pl_module.device)
        self._tokens: Tensor = torch.zeros(combinations, device=pl_module.device)


def _model(module: LightningModule) -> Macaw:
    assert isinstance(module, MacawModule)
    return module.model
