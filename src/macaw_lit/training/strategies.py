"""Lightning's strategies that shard a model, made to do what the others do, and what a machine cannot run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from macaw_lit.errors import ConfigError, in_one_line
from macaw_lit.model import Macaw
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
        super().__init__(stage=stage, logging_batch_size_per_gpu=1, **settings)  # or it reads the data to find out
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False

    def setup_environment(self) -> None:
        if self.root_device.type != "cuda":
            raise ConfigError(f"DeepSpeed on {self.root_device.type}: it needs NVIDIA GPUs; choose trainer=cpu or ddp")
        super().setup_environment()

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
        _place(module, self.root_device, precision._desired_dtype)
        for child in module.modules():
            for name, buffer in child.named_buffers(recurse=False):
                child._buffers[name] = buffer.to(self.root_device)
        deepspeed.zero.Init(module=module, remote_device=self.remote_device, config_dict_or_path=self.config)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        last = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(last)
        return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism over all processes; `prepare` says what is sharded together."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, **settings)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's "auto" means one per node
        super().setup_environment()


@contextmanager
def building(strategy: Strategy | None) -> Iterator[bool]:
    """Where weights are dealt out, let the first process alone draw and load them, in main memory.

    In the others parameters that are made within are on the meta device, until `prepare` deals out what the first has.
    What goes wrong in one process is raised in all, which would wait for it otherwise.

    Yields:
        whether this process is to have weights.
    """
    if not _deals_out_weights(strategy):
        yield True
        return
    assert strategy is not None
    failure: Exception | None = None
    try:
        with nullcontext() if strategy.is_global_zero else init_empty_weights(include_buffers=False):
            yield strategy.is_global_zero
    except Exception as error:
        failure = error
    failures = from_all_processes(failure and in_one_line(failure))
    if failure:
        raise failure
    for rank, message in enumerate(failures):
        if message:
            raise ConfigError(f"process {rank} could not build the model ({message}): mend what it says")


def from_all_processes(value: Value) -> list[Value]:
    """One value of each process, in order of their ranks; all of them must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    gathered = [value] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered


def _deals_out_weights(strategy: Strategy | None) -> bool:
    return isinstance(strategy, FSDP2) or (isinstance(strategy, ZeRO) and bool(strategy.zero_stage_3))


def prepare(strategy: Strategy, model: Macaw) -> None:
    """Make a newly built model fit for a strategy that shards it; any other is left as it is.

    Weights are dealt out group by group, so that no process but the first, which let go of what it has dealt out, ever
    holds more than its share and one group. A group is a block of the language model, an encoder, or all else: aligners
    read the embedding table, so both stay together.
    """
    if isinstance(strategy, ZeRO | FSDP2):
        for parameter in model.parameters():
            if parameter.ndim == 0:  # neither can deal out a scalar
                parameter.data = parameter.data.reshape(1)
    if not _deals_out_weights(strategy):
        return
    # A process whose answers have ended goes on with the others, or they would wait for its part of the weights.
    model.llm.generation = {**model.llm.generation, "synced_gpus": True}
    tie(model, from_all_processes(tied(model))[0])  # parameters without memory lose it
    blocks = [block for part in model.llm.modules() if isinstance(part, nn.ModuleList) for block in part]
    for module in (*blocks[::-1], *model.encoders.values(), model):  # a block within a block comes first
        if isinstance(strategy, FSDP2):
            for parameter in _place(module, strategy.root_device):
                distributed.broadcast(parameter.data, src=0)
            fully_shard(module, mesh=strategy.device_mesh["data_parallel"])
        elif isinstance(strategy, ZeRO):
            strategy.deal_out(module)
    if isinstance(strategy, FSDP2):
        register_fsdp_forward_method(model, "generate")


def tied(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are the same as an earlier one, as an output head may be: name → earlier name."""
    first: dict[int, str] = {}
    names = [(name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False)]
    return {name: earlier for name, earlier in names if name != earlier}


def tie(model: nn.Module, names: Mapping[str, str]) -> None:
    """Make parameters the same that are so by `tied`."""
    for name, earlier in names.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, model.get_parameter(earlier))


def _place(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> list[nn.Parameter]:
    """Move those weights of a module to a device that are not dealt out yet, or make room for them there."""
    placed: dict[nn.Parameter, nn.Parameter] = {}  # those that are tied stay so
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is None or isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"):
                continue
            if parameter not in placed:
                make = torch.empty_like if parameter.is_meta else torch.Tensor.to
                data = make(parameter.detach(), device=device, dtype=dtype or parameter.dtype)
                placed[parameter] = nn.Parameter(data, parameter.requires_grad)
            child._parameters[name] = placed[parameter]
    return [*placed.values()]


def whole_state(strategy: Strategy, model: nn.Module) -> dict[str, Tensor] | None:
    """All weights in main memory, in the first process; None if the strategy is none that `prepare` knows.

    Every process must call it before training is torn down. Scalars have one dimension, as `prepare` left them.
    """
    if not isinstance(strategy, ZeRO | FSDP2):
        return None
    state = model.state_dict()
    if isinstance(strategy, ZeRO) and strategy.zero_stage_3:
        import deepspeed  # takes seconds, and is an extra

        for name, parameter in model.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter]):
                if strategy.is_global_zero:
                    state[name] = parameter.detach().to("cpu", copy=True)
    whole = {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in state.items()}
    return {name: tensor.to("cpu", copy=True) for name, tensor in whole.items()}  # some are pieces of one buffer


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
