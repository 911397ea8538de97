"""Lightning's strategies that shard a model, made to do what the others do, and what a machine cannot run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from macaw_lit.deferred import materialised
from macaw_lit.errors import ConfigError
from macaw_lit.precision import cast_constants
from macaw_lit.training.optim import MuonAdamW

Value = TypeVar("Value")


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed's ZeRO (Rajbhandari et al., 2020), where Lightning counts batches and a model is built as ever.

    Lightning divides the loss by the batches of a step and DeepSpeed divides it again; and DeepSpeed counts batches on
    through epochs while Lightning begins anew, so that they step at different batches where an epoch is no multiple.
    Here Lightning's division and count hold. Batch size, accumulation, clipping and precision are the Trainer's.

    With an offloaded optimizer the configured one runs on the CPU, where DeepSpeed wants its own.

    Raises:
        ConfigError: there are no NVIDIA GPUs.
    """

    def __init__(self, stage: int = 2, **settings: Any) -> None:
        super().__init__(stage=stage, **settings)
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False

    def setup_environment(self) -> None:
        if self.root_device.type != "cuda":
            raise ConfigError(f"DeepSpeed on {self.root_device.type}: it needs NVIDIA GPUs; choose trainer=cpu or ddp")
        super().setup_environment()

    def _auto_select_batch_size(self) -> int:
        """What DeepSpeed logs by; Lightning would read the data to find it out."""
        assert self.lightning_module is not None
        return int(getattr(self.lightning_module.trainer.datamodule, "batch_size", 1))  # type: ignore[attr-defined]

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        yield  # in main memory: a GPU has no room for 7B weights in 32 bit before DeepSpeed makes them 16

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        yield

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        yield  # gradients that are dealt out cannot wait for the last batch

    def deal_out(self, module: nn.Module) -> None:
        """Give each process its piece of those weights of a module that are not dealt out yet (stage 3)."""
        import deepspeed  # takes seconds, and is an extra

        # DeepSpeed casts and moves a model itself, but not one that is dealt out already.
        precision: Any = self.precision_plugin
        self._init_config_if_needed()
        place(module, self.root_device, precision._desired_dtype)
        for child in module.modules():
            for name, buffer in child.named_buffers(recurse=False):
                child._buffers[name] = buffer.to(self.root_device)
        cast_constants(module, precision._desired_dtype)
        deepspeed.zero.Init(module=module, remote_device=self.remote_device, config_dict_or_path=self.config)

    def gather_at_once(self, module: nn.Module) -> None:
        """Have all weights within a module gathered when it is called, whatever of it then runs (stage 3)."""
        from deepspeed.utils import set_z3_leaf_module  # takes seconds, and is an extra

        set_z3_leaf_module(module, True)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        last = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(last)
        return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism over all processes; `deal_out` says what is sharded together.

    With `bf16-mixed` weights are gathered, and gradients computed, in bf16, a group at a time; the weights that each
    process keeps, their gradients' sums and the optimizer are in fp32. Lightning's autocast would cast them whole.
    """

    policy = MixedPrecisionPolicy()

    def __init__(self, **settings: Any) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, **settings)

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if plugin is not None and plugin.precision == "16-mixed":
            raise ConfigError("trainer.precision=16-mixed with FSDP2, which has no loss scale: choose bf16-mixed")
        if plugin is not None and plugin.precision == "bf16-mixed":
            self.policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            plugin = Precision()
            plugin.precision = "bf16-mixed"
        self._precision_plugin = plugin

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's "auto" means one per node
        super().setup_environment()

    def deal_out(self, module: nn.Module) -> None:
        """Give each process its piece of those weights of a module that are not dealt out yet."""
        for parameter in place(module, self.root_device):
            distributed.broadcast(parameter.data, src=0)
        cast_constants(module, self.policy.param_dtype)
        fully_shard(module, mesh=self.device_mesh["data_parallel"], mp_policy=self.policy)


def from_all_processes(value: Value) -> list[Value]:
    """One value of each process, in order of their ranks; all of them must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    gathered = [value] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered


def place(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> list[nn.Parameter]:
    """Bring those weights of a module to a device that are not dealt out yet, or make room for them there."""
    placed: dict[nn.Parameter, nn.Parameter] = {}  # those that are tied stay so
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is None or isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"):
                continue
            if parameter not in placed:
                data = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device=device)
                if not parameter.is_meta:
                    data.copy_(materialised(parameter.detach()))
                placed[parameter] = nn.Parameter(data, parameter.requires_grad)
            child._parameters[name] = placed[parameter]
    return [*placed.values()]


def values_of(parameter: Tensor) -> int:
    """How many values a parameter has in all processes; ZeRO-3 leaves nothing of it in its place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def check_strategy(strategy: Strategy) -> None:
    """Refuse Lightning's own strategies of these kinds, and fp16 weights without masters, which train wrongly.

    Lightning's DeepSpeed divides the gradients of accumulated batches twice and steps at other batches, its FSDP2
    shards nothing by itself, so that processes drift apart, and its FSDP cannot lend the embedding table to aligners.

    Raises:
        ConfigError: it is one of them.
    """
    for kind, own, group in (
        (DeepSpeedStrategy, ZeRO, "deepspeed_zero2_bf16"),
        ((ModelParallelStrategy, FSDPStrategy), FSDP2, "fsdp_bf16"),
    ):
        if isinstance(strategy, kind) and not isinstance(strategy, own):
            raise ConfigError(
                f"strategy {type(strategy).__name__} of Lightning does not train this model rightly: choose "
                f"{own.__module__}.{own.__name__}, as trainer={group} does"
            )
    if strategy.precision_plugin.precision == "16-true" and not isinstance(strategy, ZeRO):
        raise ConfigError(
            "precision=16-true has neither a loss scale nor fp32 weights and ends in nan: choose 16-mixed or bf16-mixed"
        )


def check_compiled(strategy: Strategy | None, parts: Sequence[str]) -> None:
    """Refuse to compile blocks whose layers a strategy fills one by one as they run.

    Raises:
        ConfigError: it does.
    """
    if parts and isinstance(strategy, ZeRO) and strategy.zero_stage_3:
        raise ConfigError(
            f"compiled={[*parts]} with ZeRO-3, which gathers the weights of each layer while a block runs: choose "
            "compiled=[], or ZeRO-2 or FSDP2"
        )


def check_optimizer(strategy: Strategy, optimizer: object) -> None:
    """Refuse an optimizer that needs whole matrices where a strategy leaves it pieces.

    Raises:
        ConfigError: it does.
    """
    if isinstance(strategy, ZeRO | FSDP2) and isinstance(optimizer, MuonAdamW):
        raise ConfigError(
            f"optim=muon with {type(strategy).__name__}: it orthogonalises whole matrices, of which each process has "
            "a piece; choose optim=adamw, or trainer=ddp"
        )


def check_machine(settings: Mapping[str, Any], gpus: int, cuda: bool) -> None:
    """Refuse a Trainer's settings that this machine cannot run.

    Args:
        settings: of a `lightning.Trainer`.
        gpus, cuda: how many GPUs there are, and whether they are NVIDIA's.

    Raises:
        ConfigError: it cannot.
    """
    accelerator, devices, precision = (settings.get(name) for name in ("accelerator", "devices", "precision"))
    if accelerator in ("gpu", "cuda") and not gpus:
        raise ConfigError("trainer.accelerator=gpu, and no GPU is to be seen: choose trainer=cpu, or check nvidia-smi")
    on_gpu = gpus > 0 and accelerator != "cpu"
    strategy = settings.get("strategy")
    target = str(strategy.get("_target_")) if isinstance(strategy, Mapping) else str(strategy)
    if ("deepspeed" in target or target.endswith(".ZeRO")) and not (on_gpu and cuda):
        raise ConfigError("DeepSpeed needs NVIDIA GPUs, and none is to be used: choose trainer=cpu, gpu or ddp")
    if not on_gpu and str(precision) in ("16", "16-mixed", "16-true"):
        raise ConfigError(f"trainer.precision={precision} on a CPU, which has no fp16: choose 32-true or bf16-mixed")
    if on_gpu and isinstance(devices, int) and devices > gpus:
        raise ConfigError(
            f"trainer.devices={devices}, and {gpus} GPUs are to be seen: ask for {gpus} or fewer, "
            "and keep the rows of a step with trainer.accumulate_grad_batches"
        )
