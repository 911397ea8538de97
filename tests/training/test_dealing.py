"""No process holds the whole model, and what it is dealt out of and gathered into is the same to the bit."""

import pytest
import torch
from accelerate import init_empty_weights
from lightning.pytorch.strategies import SingleDeviceStrategy

from macaw_lit.errors import ConfigError
from macaw_lit.later import Later
from macaw_lit.model import Macaw
from macaw_lit.training import dealing
from macaw_lit.training.dealing import building, prepare, tie, tied, whole_state
from macaw_lit.training.strategies import FSDP2, ZeRO


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
            assert isinstance(weight, Later) is (rank == 0)


def test_what_goes_wrong_in_one_process_while_building_ends_all(monkeypatch):
    def gathered(own):
        return [own, "no such file"]

    monkeypatch.setattr(dealing, "from_all_processes", gathered)
    with pytest.raises(ConfigError, match=r"process 1 could not build the model \(no such file\)"), building(FSDP2()):
        pass
    with pytest.raises(ConfigError, match="my own"), building(FSDP2()):
        raise ConfigError("my own")
