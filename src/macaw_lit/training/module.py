"""The LightningModule: loss, log, optimizer, schedule, and nothing about files or shapes."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from macaw_lit.errors import ConfigError, TrainingError, in_one_line
from macaw_lit.model import Macaw
from macaw_lit.training.adapt import adapt, in_4_bits
from macaw_lit.training.blocks import compile_blocks, recompute, restore
from macaw_lit.training.checkpoint_files import require_same
from macaw_lit.training.dealing import building, deals_out_weights, fill, prepare, tie, tied, whole_state
from macaw_lit.training.finite import explain_loss, loss_scale
from macaw_lit.training.nf4 import layers_in_4_bits
from macaw_lit.training.optim import cosine_with_warmup
from macaw_lit.training.strategies import check_compiled, check_optimizer, check_strategy, from_all_processes
from macaw_lit.types import Batch, Output


class MacawModule(LightningModule):
    """Trains a `Macaw`, all of it unless told otherwise, in one stage on the loss of the response's tokens (Eq. 6).

    Args:
        config: sizes of the model, for `Macaw.from_config`.
        optimizer: model → optimizer.
        warmup_ratio: share of all steps in which the learning rate rises.
        pretrained: part → weights, for `Macaw.load_pretrained`.
        adapt: part → how it is trained, for `training.adapt.adapt`.
        loss_mean: what the loss is the mean of. `tokens`: all response tokens of an optimizer step, over ranks and
            accumulated batches, so that the update does not depend on how rows are dealt out. `microbatches`: the
            means of the batches, as the original has it, where a response weighs more among short ones.
        checkpointing: parts whose blocks' activations are computed again in the backward pass, for `blocks.recompute`.
        compiled: parts whose blocks are compiled, for `blocks.compile_blocks`.

    Raises:
        ConfigError: `loss_mean` is neither, or batches that do not know their step's tokens are accumulated.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        optimizer: Callable[[torch.nn.Module], Optimizer],
        warmup_ratio: float = 0.03,
        pretrained: Mapping[str, str | None] | None = None,
        adapt: Mapping[str, Any] | None = None,
        loss_mean: str = "tokens",
        checkpointing: Sequence[str] = (),
        compiled: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if loss_mean not in ("tokens", "microbatches"):
            raise ConfigError(f"loss_mean={loss_mean}: expected tokens or microbatches")
        self.loss_mean = loss_mean
        self.checkpointing, self.compiled = checkpointing, compiled
        self.config = config
        self.pretrained = pretrained or {}
        self.adapt = adapt or {}
        self.build_optimizer = optimizer
        self.warmup_ratio = warmup_ratio
        self._model: Macaw | None = None
        self._whole: list[Macaw] = []  # in a list, or it would count as a part of this module
        self._frozen: list[torch.nn.Module] = []
        self._configured: list[dict[str, Any]] = []

    def configure_model(self) -> None:
        """Build here and not in `__init__`, so that strategies that shard can do so at creation."""
        if self._model is None:
            strategy = None if self._trainer is None else self.trainer.strategy
            if strategy is not None:
                check_strategy(strategy)
            check_compiled(strategy, self.compiled)
            with building(strategy, in_4_bits(self.adapt)) as with_weights:
                model = Macaw.from_config(self.config)
                if with_weights:
                    model.load_pretrained(self.pretrained)
                self._frozen = self._fitted(model)
            if not deals_out_weights(strategy):
                fill(model)
            if strategy is not None:
                prepare(strategy, model)
            self._model = model
            # DDP would send them from the first process to the others in every forward pass.
            layers = layers_in_4_bits(self).items()
            constant = [f"{name}.{buffer}" for name, layer in layers for buffer, _ in layer.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, constant)

    def blueprint(self) -> Macaw:
        """The model on meta, as it will be built, so that what it or its optimizer refuses is known at once.

        Raises:
            ConfigError: a setting that they refuse.
        """
        with torch.device("meta"):
            model = Macaw.from_config(self.config)
            model.load_pretrained(dict.fromkeys(self.pretrained))  # names alone
            self._fitted(model)
        try:
            self.build_optimizer(model)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the optimizer cannot be built ({in_one_line(error)}): mend that setting") from error
        return model

    def _fitted(self, model: Macaw) -> list[torch.nn.Module]:
        """Freeze, adapt and compile parts of a new model, or keep less of them; returns those that are frozen."""
        frozen = adapt(model, self.adapt)
        compile_blocks(model, self.compiled)
        recompute(model, self.checkpointing)
        return frozen

    def train(self, mode: bool = True) -> "MacawModule":
        """As ever, but a frozen part has nothing to learn from noise: no dropout there."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    @property
    def model(self) -> Macaw:
        """The model, once `configure_model` has built it."""
        assert self._model is not None, "configure_model() has not run"
        return self._model

    def on_train_start(self) -> None:
        """Refuse loaders of unequal length, where those with more batches would wait for the others for ever.

        Raises:
            ConfigError: a process has more batches than another.
        """
        self._keep_rates()
        counts = {"train": self.trainer.num_training_batches}
        if deals_out_weights(self.trainer.strategy):  # which are gathered in every forward pass
            counts["validate"] = sum(self.trainer.num_val_batches)
        for use, count in counts.items():
            found = from_all_processes(count)
            if len(set(found)) > 1:
                raise ConfigError(
                    f"processes with {', '.join(map(str, found))} batches to {use} on would wait for each other: give "
                    "each the same number, as MacawDataModule does"
                )

    def _keep_rates(self) -> None:
        """Go on with the rates, decay and betas of the settings, where a checkpoint brought others."""
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        for place, (group, own) in enumerate(zip(scheduler.optimizer.param_groups, self._configured, strict=True)):
            group.update(own)
            if scheduler.base_lrs[place] != own["initial_lr"]:
                scheduler.base_lrs[place] = own["initial_lr"]
                group["lr"] = own["initial_lr"] * scheduler.lr_lambdas[place](scheduler.last_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self.model(batch)
        step_tokens = self._one_batch(output) if batch.step_tokens is None else batch.step_tokens
        own = torch.stack([output.nll.detach(), output.tokens, output.tokens.new_tensor(step_tokens)])
        nll, tokens, all_tokens = torch.as_tensor(self.all_gather(own)).reshape(-1, 3).sum(0)
        if loss_scale(self.trainer) is None and not nll.isfinite():  # with a scale the step is skipped, and counted
            raise TrainingError(
                f"step {self.trainer.global_step}: {explain_loss(self.model, batch, output.nll)}; "
                "look at these rows, or go on from a checkpoint before with a lower optim.lr or in fp32"
            )
        self.log("train/loss", nll / tokens.clamp(min=1), prog_bar=True, batch_size=len(batch.uids))
        if self.loss_mean == "microbatches":
            return output.nll / output.tokens.clamp(min=1)
        # Lightning divides by the batches of a step, and every strategy by its ranks.
        shares = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return output.nll * (shares / all_tokens.clamp(min=1)).to(output.nll)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As ever, but a step's gradients go with it; Lightning would keep them through the next forward pass."""
        super().optimizer_step(*args, **kwargs)
        self.trainer.optimizers[0].zero_grad()

    def _one_batch(self, output: Output) -> int:
        if self.trainer.accumulate_grad_batches > 1 and self.loss_mean == "tokens":
            raise ConfigError(
                f"accumulate_grad_batches={self.trainer.accumulate_grad_batches} with batches that do not say how many "
                "response tokens their whole step has: take MacawDataModule, or loss_mean=microbatches"
            )
        assert output.tokens is not None
        return int(output.tokens)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output = self.model(batch)
        tokens = int(output.tokens)  # weighs the mean, over batches and ranks
        self.log("val/loss", output.nll / max(1, tokens), prog_bar=True, batch_size=tokens, sync_dist=True)

    def on_fit_end(self) -> None:
        """Gather what the strategy has sharded, while its processes still talk to each other."""
        restore(self.model)
        state = whole_state(self.trainer.strategy, self.model, Path(self.trainer.default_root_dir))
        if state is None:
            return
        with init_empty_weights(include_buffers=False):
            whole = Macaw.from_config(self.config)
            adapt(whole, self.adapt)
        shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
        whole.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in state.items()}, assign=True)
        tie(whole, tied(self.model))
        whole.config = self.model.config
        self._whole = [whole]

    @property
    def trained(self) -> Macaw:
        """The whole model after training, in the first process; the same as `model` where no strategy sharded it."""
        return self._whole[0] if self._whole else self.model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["made_of"] = self._made_of()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "made_of" in checkpoint:
            require_same(checkpoint["made_of"], self._made_of())

    def _made_of(self) -> dict[str, Any]:
        """What the states of weights and optimizer depend on, under the names of its settings."""
        optimizer = getattr(self.build_optimizer, "func", self.build_optimizer)
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        return {"model": {**self.config, "adapt": dict(self.adapt)}, "optimizer": name}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.build_optimizer(self.model)
        check_optimizer(self.trainer.strategy, optimizer)
        steps = self.trainer.estimated_stepping_batches
        if not 0 <= steps < math.inf:  # -1: max_epochs of a loader without a length
            raise ConfigError(
                f"max_epochs={self.trainer.max_epochs} and max_steps={self.trainer.max_steps} tell no number of steps, "
                "over which the learning rate falls: give max_steps"
            )
        schedule = cosine_with_warmup(optimizer, int(steps), self.warmup_ratio)
        names = ("initial_lr", "weight_decay", "betas")
        self._configured = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
