"""No process holds the whole model, and what it is dealt out of and gathered into is the same to the bit."""

import errno
import os

import pytest
import torch
from accelerate import init_empty_weights
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from macaw_lit.deferred import Deferred
from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw
from macaw_lit.training import dealing
from macaw_lit.training.dealing import building, prepare, tie, tied, whole_state
from macaw_lit.training.strategies import FSDP2, ZeRO, place


def test_scalars_get_a_dimension_where_they_are_dealt_out_and_nowhere_else(model, tmp_path):
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    assert scalars, "the temperature of an aligner is one"
    plain = SingleDeviceStrategy(torch.device("cpu"))
    prepare(plain, model)
    assert all(model.get_parameter(name).ndim == 0 for name in scalars)
    assert whole_state(plain, model, tmp_path) is None
    prepare(ZeRO(), model)
    assert all(model.get_parameter(name).shape == (1,) for name in scalars)
    state = whole_state(ZeRO(), model, tmp_path)
    assert state is not None
    assert all(tensor.data_ptr() != model.state_dict()[name].data_ptr() for name, tensor in state.items())


def test_what_is_tied_is_tied_again(sizes):
    sizes["llm"]["config"] = {**sizes["llm"]["config"], "tie_word_embeddings": True}
    names = tied(Macaw.from_config(sizes))
    assert names == {"llm.model.lm_head.weight": "llm.model.model.embed_tokens.weight"}
    with init_empty_weights(include_buffers=False):
        outline = Macaw.from_config(sizes)
    assert tied(outline) == {}, "parameters without memory are made anew under each of their names"
    tie(outline, names)
    assert tied(outline) == names


def test_only_strategies_that_deal_weights_out_build_in_one_process(monkeypatch):
    for strategy in (None, SingleDeviceStrategy(torch.device("cpu")), ZeRO(2)):
        with building(strategy) as with_weights:
            assert with_weights
    for strategy in (ZeRO(3), FSDP2()):
        for rank in (0, 1):
            monkeypatch.setattr(type(strategy), "is_global_zero", rank == 0)
            with building(strategy) as with_weights:
                assert with_weights is (rank == 0)
                weight = torch.nn.Linear(2, 2).weight
            assert weight.is_meta is (rank == 1)
            assert isinstance(weight, Deferred) is (rank == 0)


def test_what_goes_wrong_in_one_process_while_building_ends_all(monkeypatch):
    def gathered(own):
        return [own, "no such file"]

    monkeypatch.setattr(dealing, "from_all_processes", gathered)
    with pytest.raises(ConfigError, match=r"process 1 could not build the model \(no such file\)"), building(FSDP2()):
        pass
    with pytest.raises(ConfigError, match="my own"), building(FSDP2()):
        raise ConfigError("my own")


def test_what_is_gathered_lies_in_files_without_a_name_and_can_be_written_to(model, tmp_path):
    prepare(ZeRO(), model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = whole_state(ZeRO(), model, tmp_path / "new")
    assert state is not None
    assert [*(tmp_path / "new").iterdir()] == []
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)
    for tensor in state.values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_tied_is_gathered_once(sizes, tmp_path):
    sizes["llm"]["config"] = {**sizes["llm"]["config"], "tie_word_embeddings": True}
    model = Macaw.from_config(sizes)
    state = whole_state(ZeRO(), model, tmp_path)
    assert state is not None
    assert all(state[name].data_ptr() == state[earlier].data_ptr() for name, earlier in tied(model).items())


def test_a_full_disk_is_told_once_all_have_gathered(model, tmp_path, monkeypatch):
    gathered: list[object] = []

    def full(tensor, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(dealing, "_on_disk", full)
    monkeypatch.setattr(dealing, "_gathered", lambda strategy, tensor: gathered.append(tensor))
    with pytest.raises(OSError, match="No space left"):
        whole_state(ZeRO(), model, tmp_path)
    assert len(gathered) == len(model.state_dict()), "the others would wait for this process"


def test_a_folder_that_cannot_be_made_is_told_once_all_have_gathered(model, tmp_path, monkeypatch):
    gathered: list[object] = []
    monkeypatch.setattr(dealing, "_gathered", lambda strategy, tensor: gathered.append(tensor))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        whole_state(ZeRO(), model, tmp_path / "file" / "run")
    assert len(gathered) == len(model.state_dict()), "the others would wait for this process"
    monkeypatch.setattr(ZeRO, "is_global_zero", False)
    assert whole_state(ZeRO(), model, tmp_path / "file" / "run") is None, "the others write nothing"


def test_what_a_killed_process_left_is_removed_and_nothing_else(model, tmp_path):
    prepare(ZeRO(), model)
    (tmp_path / ".whole.left").mkdir()
    (tmp_path / ".whole.left" / "0").write_bytes(bytes(9))
    (tmp_path / "metrics.csv").touch()
    assert whole_state(ZeRO(), model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_files_that_stay_while_they_are_mapped_are_no_error(model, tmp_path, monkeypatch):
    """As on NFS, which renames them into the folder that is to be removed."""

    def busy(path, *args, **kwargs):
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    prepare(ZeRO(), model)
    monkeypatch.setattr(os, "rmdir", busy)
    assert whole_state(ZeRO(), model, tmp_path)


def test_the_first_process_gives_out_what_a_plain_build_has(sizes, monkeypatch):
    """Group by group, and with no memory for any weight before."""
    torch.manual_seed(0)
    plain = Macaw.from_config(sizes)
    whole = sum(parameter.nbytes for parameter in plain.parameters())
    given: list[int] = []

    def deal_out(self, module):
        given.append(sum(parameter.nbytes for parameter in place(module, torch.device("cpu"))))
        for parameter in module.parameters():
            parameter.ds_id = 0  # as DeepSpeed marks those that are dealt out

    monkeypatch.setattr(ZeRO, "deal_out", deal_out)
    torch.manual_seed(0)
    with building(ZeRO(3)):
        model = Macaw.from_config(sizes)
    assert all(isinstance(parameter, Deferred) for parameter in model.parameters())
    prepare(ZeRO(3), model)
    assert len(given) == 5, "two layers, two encoders and the rest"
    assert sum(given) == whole
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name).reshape(parameter.shape), parameter), name


def test_a_block_goes_with_the_lists_within_it_as_one_group(model, monkeypatch):
    """Experts that no token of a process is sent to would be gathered by the others alone, which would wait."""
    groups: list[nn.Module] = []
    monkeypatch.setattr(ZeRO, "deal_out", lambda self, module: groups.append(module))
    layers = [module for module in model.llm.modules() if type(module).__name__ == "LlamaDecoderLayer"]
    for layer in layers:
        layer.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    prepare(ZeRO(3), model)
    assert groups == [*layers, *model.encoders.values(), model]


def test_stacked_experts_are_gathered_at_once_whatever_of_them_runs(sizes, monkeypatch):
    mixture = {"num_local_experts": 4, "num_key_value_heads": 2, "model_type": "mixtral"}
    sizes["llm"]["config"] = {**sizes["llm"]["config"], **mixture}
    model, gathered = Macaw.from_config(sizes), []
    monkeypatch.setattr(ZeRO, "deal_out", lambda self, module: None)
    monkeypatch.setattr(ZeRO, "gather_at_once", lambda self, module: gathered.append(type(module).__name__))
    prepare(ZeRO(3), model)
    assert gathered == ["MixtralExperts"] * 2
