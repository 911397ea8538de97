"""Reading weight files of strangers: what loads, what is refused, and that nothing is ever executed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from macaw_lit.errors import WeightsError
from macaw_lit.weights import load_exactly, read_weights, tensors_under

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0]).bfloat16()}


class Trap:
    """Makes a folder when a reader rebuilds it: the proof that foreign code was run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "weights_only" not in message  # the reader's own advice is to lift its restriction
    return message


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "bin"])
def test_weights_come_back_to_the_bit(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    found = read_weights(path)
    assert found.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
def test_code_in_a_weight_file_is_refused_and_not_run(tmp_path, suffix, legacy):
    canary, path = tmp_path / "canary", tmp_path / f"weights.{suffix}"
    torch.save({**STATE, "trap": Trap(canary)}, path, _use_new_zipfile_serialization=not legacy)
    assert "holds more than tensors" in refusal(path)
    assert not canary.exists()
    spring, arguments = Trap(canary).__reduce__()  # what an unrestricted reader would have called
    spring(*arguments)
    assert canary.exists()


def test_a_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path):
    assert "not found" in refusal(tmp_path / "none.pt")
    assert "not found" in refusal(tmp_path)
    (tmp_path / "weights.ckpt").write_bytes(b"x")
    assert "ends with '.ckpt': expected .safetensors" in refusal(tmp_path / "weights.ckpt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    assert "holds a list: expected a state dict" in refusal(tmp_path / "list.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:UserWarning")
def test_a_torchscript_program_is_named_as_such(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "ViT-B-16.pt"))
    assert "is a TorchScript program or a tar: save its state_dict() as .safetensors" in refusal(
        tmp_path / "ViT-B-16.pt"
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_damaged_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", bytes(len(whole)), b"not weights at all\n" * 9):
        path.write_bytes(content)
        refusal(path)


def test_the_way_out_of_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-3])
    assert "is damaged" in refusal(path)
    assert "fetch or write it again" in refusal(path)


def test_tensors_under_a_prefix_and_nothing_else():
    state = {"visual.a": torch.ones(1), "visual.visual.b": torch.ones(2), "text.a": torch.ones(3), "visual.n": 4}
    assert {name: len(tensor) for name, tensor in tensors_under(state, "visual.").items()} == {"a": 1, "visual.b": 2}


def test_load_exactly_loads_all_or_nothing():
    layer = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    faults = [
        ({"weight": weights["weight"]}, r"1 missing: bias"),
        (weights | {"scale": torch.ones(1)}, r"1 unexpected: scale"),
        (weights | {"weight": torch.ones(3, 2)}, r"1 of another shape: weight \[3, 2\], wanted \[2, 3\]"),
        ({}, r"2 missing: bias, weight"),
    ]
    for state, message in faults:
        with pytest.raises(WeightsError, match=f"file.pt does not fit Linear.*{message}"):
            load_exactly(layer, state, "file.pt")
        assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    load_exactly(layer, weights, "file.pt")
    assert all(torch.equal(weights[name], tensor) for name, tensor in layer.state_dict().items())


def test_a_long_list_of_keys_is_cut_and_counted():
    with pytest.raises(WeightsError, match=r"12 unexpected: extra00, extra01, extra02, extra03, extra04, …\)"):
        load_exactly(nn.Identity(), {f"extra{number:02}": torch.ones(1) for number in range(12)}, "file.pt")
