"""Lightning's strategies that shard a model, made to do what the others do, and what a machine cannot run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw
from macaw_lit.training.optim import MuonAdamW


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed's ZeRO (Rajbhandari et al., 2020), where Lightning counts batches and a model is built as ever.

    Lightning divides the loss by the batches of a step and DeepSpeed divides it again; and DeepSpeed counts batches on
    through epochs while Lightning begins anew, so that they step at different batches where an epoch is no multiple.
    Here Lightning's division and count hold. Batch size, accumulation, clipping and precision are the Trainer's.

    A model is built and filled in full in each process's memory, and sharded after that: initialisation and loading
    need whole tensors. With an offloaded optimizer the configured one runs on the CPU, where DeepSpeed wants its own.

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

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        last = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(last)
        return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism over all processes; `shard` says what is sharded together."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, **settings)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's "auto" means one per node
        super().setup_environment()


def prepare(strategy: Strategy, model: Macaw) -> None:
    """Make a newly built model fit for a strategy that shards it; any other is left as it is."""
    if isinstance(strategy, ZeRO | FSDP2):
        for parameter in model.parameters():
            if parameter.ndim == 0:  # neither can deal out a scalar
                parameter.data = parameter.data.reshape(1)
    if isinstance(strategy, FSDP2):
        _shard(model, strategy.device_mesh)
        register_fsdp_forward_method(model, "generate")
    if isinstance(strategy, FSDP2) or (isinstance(strategy, ZeRO) and strategy.zero_stage_3):
        # A process whose answers have ended goes on with the others, or they would wait for its part of the weights.
        model.llm.generation = {**model.llm.generation, "synced_gpus": True}


def _shard(model: Macaw, mesh: DeviceMesh) -> None:
    """Shard each block of the language model, each encoder, and all else with the model itself.

    Aligners read the embedding table, so both stay with the whole, which is gathered through all of a forward pass.
    """
    blocks = [block for part in model.llm.modules() if isinstance(part, nn.ModuleList) for block in part]
    for module in (*blocks[::-1], *model.encoders.values(), model):  # a block within a block comes first
        fully_shard(module, mesh=mesh["data_parallel"])


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
