"""How weights are dealt out to processes while a model is built, and come together again when it is trained."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import init_empty_weights
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from macaw_lit.deferred import Deferred, deferring
from macaw_lit.errors import ConfigError, in_one_line
from macaw_lit.model import Macaw
from macaw_lit.training.blocks import blocks_of
from macaw_lit.training.nf4 import layers_in_4_bits, share
from macaw_lit.training.strategies import FSDP2, ZeRO, from_all_processes, place

_PREFIX = ".whole."


@contextmanager
def building(strategy: Strategy | None, quantised: bool = False) -> Iterator[bool]:
    """Where weights are dealt out, let the first process alone learn how they are to be drawn and read.

    It remembers that, and has no memory for parameters that are made within either; in the others they are on the
    meta device. `prepare` deals them out. What goes wrong in one process is raised in all, which would wait otherwise.

    Args:
        quantised: most weights will be in 4 bits, so that each process remembers where weights are not dealt out, and
            `fill` gives memory to what is left.

    Yields:
        whether this process is to load weights.
    """
    if not deals_out_weights(strategy):
        if quantised:
            with torch.device("cpu"), deferring():  # a strategy may have chosen a GPU
                yield True
        else:
            yield True
        return
    assert strategy is not None
    failure: Exception | None = None
    try:
        with deferring() if strategy.is_global_zero else init_empty_weights(include_buffers=False):
            yield strategy.is_global_zero
    except Exception as error:
        failure = error
    failures = from_all_processes(failure and in_one_line(failure))
    if failure:
        raise failure
    for rank, message in enumerate(failures):
        if message:
            raise ConfigError(f"process {rank} could not build the model ({message}): mend what it says")


def deals_out_weights(strategy: Strategy | None) -> bool:
    """Whether a strategy leaves each process a share of the weights alone."""
    return isinstance(strategy, FSDP2) or (isinstance(strategy, ZeRO) and bool(strategy.zero_stage_3))


def fill(model: nn.Module) -> None:
    """Give memory to parameters that were made without, one by one."""
    if any(isinstance(parameter, Deferred) for parameter in model.parameters()):
        place(model, torch.device("cpu"))


def prepare(strategy: Strategy, model: Macaw) -> None:
    """Make a newly built model fit for a strategy that shards it; any other is left as it is.

    Weights get their values and are dealt out group by group, so that no process ever holds more than its share and
    one group. A group is a block of the language model, experts and all, an encoder, or all else: aligners read the
    embedding table, so both stay together. What is in 4 bits is not dealt out: each process has all of it.
    """
    if layers_in_4_bits(model):
        share(model, strategy.root_device)
    if isinstance(strategy, ZeRO | FSDP2):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim == 0:  # neither can deal out a scalar
                    module._parameters[name] = nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)
    if not deals_out_weights(strategy):
        return
    # A process whose answers have ended goes on with the others, or they would wait for its part of the weights.
    model.llm.generation = {**model.llm.generation, "synced_gpus": True}
    tie(model, from_all_processes(tied(model))[0])  # parameters on the meta device lose it
    if isinstance(strategy, ZeRO):
        for module in model.llm.modules():
            # Stacked experts call modules as often as tokens are sent to them. DeepSpeed gathers ahead by the order of
            # the calls before, and processes that remember other orders would wait for each other.
            if any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
                strategy.gather_at_once(module)
    for module in (*blocks_of(model.llm), *model.encoders.values(), model):
        assert isinstance(strategy, ZeRO | FSDP2)
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


def whole_state(strategy: Strategy, model: nn.Module, folder: Path) -> dict[str, Tensor] | None:
    """All weights, in the first process; None if the strategy is none that `prepare` knows, and in the others.

    They are gathered one by one and stay in files without a name, in `folder`, of which the system reads into main
    memory what is needed. Every process must call it before training is torn down. Scalars have one dimension, as
    `prepare` left them.

    Raises:
        OSError: there is no room for them.
    """
    if not isinstance(strategy, ZeRO | FSDP2):
        return None
    state, twins = {}, tied(model)
    failure: OSError | None = None
    made = ""
    with ExitStack() as stack:
        if strategy.is_global_zero:
            try:
                made = stack.enter_context(_room(folder))
            except OSError as error:  # the others go on, and would wait
                failure = error
        for number, (name, tensor) in enumerate(model.state_dict(keep_vars=True).items()):
            if name in twins:
                continue
            whole = _gathered(strategy, tensor)
            if strategy.is_global_zero and failure is None:
                try:
                    state[name] = _on_disk(whole, Path(made) / str(number))
                except OSError as error:
                    failure = error
    if failure is not None:
        raise failure
    state |= {name: state[earlier] for name, earlier in twins.items() if earlier in state}
    return state or None


def _room(folder: Path) -> TemporaryDirectory[str]:
    """A new folder in `folder`, without those that a process left which was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    # NFS gives mapped files other names until nobody maps them, and a folder that holds them cannot be removed.
    return TemporaryDirectory(prefix=_PREFIX, dir=folder, ignore_cleanup_errors=True)


def _gathered(strategy: ZeRO | FSDP2, tensor: Tensor) -> Tensor:
    """A weight or buffer as a whole."""
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.full_tensor()
        return whole.detach()
    if isinstance(strategy, ZeRO) and hasattr(tensor, "ds_id"):
        import deepspeed  # takes seconds, and is an extra

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def _on_disk(tensor: Tensor, path: Path) -> Tensor:
    """A copy in a new file, which has what is written into it later too."""
    values = tensor.cpu().contiguous()
    if not values.numel():
        return values.clone()
    with path.open("wb") as file:
        file.write(values.flatten().view(torch.uint8).numpy().data)
    mapped = torch.from_file(str(path), shared=True, size=values.nbytes, dtype=torch.uint8)
    return mapped.view(values.dtype).reshape(values.shape)
