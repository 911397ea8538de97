"""Reading weight files of strangers: what loads, what is refused, and that nothing is ever executed."""

import hashlib
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from macaw_lit.errors import WeightsError
from macaw_lit.weight_files import read_weights
from macaw_lit.weights import Coverage, check_facts, fingerprint, load_exactly, read_facts, tensors_under

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
    path.write_bytes(pickle.dumps(Trap(canary)))  # of a protocol that torch warns of
    with warnings.catch_warnings(action="error"):
        assert "holds more than tensors" in refusal(path)
    assert not canary.exists()
    spring, arguments = Trap(canary).__reduce__()  # what an unrestricted reader would have called
    spring(*arguments)
    assert canary.exists()


def test_a_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path):
    assert "not found" in refusal(tmp_path / "none.pt")
    assert "holds no weights: expected model.safetensors, pytorch_model.bin or an index" in refusal(tmp_path)
    (tmp_path / "weights.ckpt").write_bytes(b"x")
    assert "ends with '.ckpt': expected .safetensors" in refusal(tmp_path / "weights.ckpt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    assert "holds a list: expected a state dict" in refusal(tmp_path / "list.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:UserWarning")
def test_a_torchscript_program_is_named_as_such(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "ViT-B-16.pt"))
    message = refusal(tmp_path / "ViT-B-16.pt")
    assert "is a TorchScript program or a tar, which only running it reads" in message
    remedy = message.partition("if you trust it, ")[2]
    assert remedy == 'safetensors.torch.save_file(torch.jit.load(path).state_dict(), "clip.safetensors")'
    path, target = tmp_path / "ViT-B-16.pt", tmp_path / "clip.safetensors"
    save_file(torch.jit.load(path).state_dict(), target)  # the remedy, word for word
    assert read_weights(target).keys() == {"weight", "bias"}


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


def test_load_exactly_loads_all_or_nothing(tmp_path):
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
    coverage = load_exactly(layer, weights, "file.pt", left_out=["text.b", "text.a"], checked=["heads=3"])
    assert all(torch.equal(weights[name], tensor) for name, tensor in layer.state_dict().items())
    assert coverage.identity() == {
        "source": "file.pt",
        "sha256": fingerprint(weights),
        "loaded": 2,
        "missing": 0,
        "unexpected": 0,
        "mismatched": 0,
        "left_out": 2,
        "checked": ["heads=3"],
    }
    (tmp_path / "here.pt").touch()
    assert Coverage(source=str(tmp_path / "here.pt")).identity()["source"] == "here.pt"
    assert Coverage(source="owner/name").identity()["source"] == "owner/name"
    assert (coverage.loaded, coverage.left_out) == (("weight", "bias"), ("text.a", "text.b"))


def test_a_long_list_of_keys_is_cut_and_counted():
    with pytest.raises(WeightsError, match=r"12 unexpected: extra00, extra01, extra02, extra03, extra04, …\)"):
        load_exactly(nn.Identity(), {f"extra{number:02}": torch.ones(1) for number in range(12)}, "file.pt")


def test_a_fingerprint_is_the_sha256_of_names_types_shapes_and_bytes():
    expected = hashlib.sha256(
        b"a.bias torch.bfloat16 [2]\n\xc0\x3f\x00\xc0"  # 1.5 and -2 in bfloat16, low byte first
        b"a.weight torch.float32 [2, 3]\n" + STATE["a.weight"].numpy().tobytes()
    ).hexdigest()
    assert fingerprint(STATE) == fingerprint(dict(reversed(STATE.items()))) == expected
    others = [
        STATE | {"a.bias": STATE["a.bias"].float()},
        STATE | {"a.weight": STATE["a.weight"].reshape(3, 2)},
        STATE | {"a.weight": STATE["a.weight"].T.reshape(2, 3)},
        {name.replace("a.", "b."): tensor for name, tensor in STATE.items()},
        STATE | {"c": torch.zeros(0)},
    ]
    assert len({fingerprint(state) for state in [STATE, *others]}) == len(others) + 1
    assert fingerprint({"a": STATE["a.weight"].T}) == fingerprint({"a": STATE["a.weight"].T.contiguous()})
    assert fingerprint({"a": torch.tensor(3.0)}) != fingerprint({"a": torch.tensor([3.0])})


def write_shards(folder: Path, suffix: str) -> Path:
    """The two tensors of `STATE` in two files with their index; returns the index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, (key, tensor) in enumerate(STATE.items(), start=1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        save_file({key: tensor}, folder / file) if suffix == "safetensors" else torch.save({key: tensor}, folder / file)
        weight_map[key] = file
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_as_one(tmp_path, suffix):
    write_shards(tmp_path, suffix)
    found = read_weights(tmp_path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_that_are_missing_cut_or_exchanged_are_one_line(tmp_path, suffix):
    index = write_shards(tmp_path, suffix)
    second = tmp_path / json.loads(index.read_text())["weight_map"]["a.bias"]
    whole = second.read_bytes()

    def complaint() -> str:
        with pytest.raises(WeightsError) as caught:
            read_weights(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    second.write_bytes(whole[:-3])
    assert f"{second} is damaged" in complaint()
    second.unlink()
    assert f"lacks 1 of 2 shards: {second.name}; fetch them" in complaint()
    for state in ({}, {"a.bias": torch.ones(2), "a.more": torch.ones(2)}, {"b.bias": torch.ones(2)}):
        save_file(state, second) if suffix == "safetensors" else torch.save(state, second)
        assert f"{second} and the index beside it differ, as in" in complaint()
    second.write_bytes(whole)
    for content, message in [
        ("{", "is not JSON"),
        ("[]", "holds a list: expected a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "has no weight_map of names to files beside it"),
        ('{"weight_map": {"a": 3}}', "has no weight_map of names to files beside it"),
    ]:
        index.write_text(content)
        assert message in complaint()


def test_code_in_a_shard_is_not_run(tmp_path):
    index, canary = write_shards(tmp_path, "bin"), tmp_path / "canary"
    shard = tmp_path / json.loads(index.read_text())["weight_map"]["a.bias"]
    torch.save({"a.bias": Trap(canary)}, shard)
    assert f"{shard} is damaged or holds more than tensors" in refusal(tmp_path)
    assert not canary.exists()


def test_facts_are_read_from_json_objects_only(tmp_path):
    assert read_facts(tmp_path / "none.json") == {}
    path = tmp_path / "config.json"
    path.write_text('{"heads": 3}')
    assert read_facts(path) == {"heads": 3}
    for content, message in [("{", "is not JSON"), ("[1]", "holds a list"), ("\udc80", "is not JSON")]:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(WeightsError, match=f"config.json {message}"):
            read_facts(path)


def test_what_is_stated_must_agree_and_what_is_not_asked_for_is_ignored():
    own = {"heads": 3, "activation": "gelu"}
    assert check_facts({"heads": 3, "depth": 9}, own, "file.pt", "configure it") == ("heads=3",)
    assert check_facts({}, own, "file.pt", "configure it") == ()
    message = (
        "file.pt was made with heads=4, activation=relu, but is configured with heads=3, activation=gelu: configure"
    )
    with pytest.raises(WeightsError, match=message):
        check_facts({"heads": 4, "activation": "relu"}, own, "file.pt", "configure it")
