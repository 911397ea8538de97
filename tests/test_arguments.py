"""Arguments against the signatures that they are meant for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra import compose, initialize_config_dir

from macaw_lit import build
from macaw_lit.arguments import check
from macaw_lit.build import check_settings
from macaw_lit.cli import conf_dir
from macaw_lit.errors import ConfigError
from macaw_lit.types import Sample


def target(
    whole: int = 1,
    share: float | None = None,
    flag: bool = False,
    name: Literal["a", "b"] = "a",
    pair: Sequence[float] = (0.0, 1.0),
    rates: Mapping[str, float] | None = None,
    path: Path | str = "",
    made: Callable[..., Any] | None = None,
    other: complex = 0,
    named: tuple[str, int] = ("a", 1),
    ours: Sample | None = None,
    unsaid: int = None,  # type: ignore[assignment]  # noqa: RUF013  # as in other libraries
) -> None:
    """What the tests below call for."""


def open_target(**settings: Any) -> None:
    """Takes anything."""


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    monkeypatch.setattr("macaw_lit.arguments.get_object", lambda name: {"t": target, "open": open_target}[name])
    return lambda **arguments: {"_target_": "t", "_partial_": True, **arguments}


@pytest.mark.parametrize(
    ("name", "good", "bad", "expected"),
    [
        ("whole", [3, -1], ["3", 1.5, True, None, [1]], "a whole number"),
        ("share", [1, 0.5, None], ["x", [0.5], False, float("nan")], "a number or null"),
        ("flag", [True], [1, "yes", None], "true or false"),
        ("name", ["b"], ["c", None], "a or b"),
        ("pair", [[0.9, 1]], [0.9, ["x"], None, {"a": 1}], "a list, each a number"),
        ("rates", [{"llm": 1}, {}, None], [3, [1]], "a mapping, each a number or null"),
        ("named", [["a", 1]], [[1, "a"], ["a"], ["a", "b"], "a"], "a list of a text, a whole number"),
        ("unsaid", [None, 2], ["x"], "a whole number"),
        ("path", ["here"], [5, None], "Path or a text"),
        (
            "made",
            [None, {"_target_": "open", "_partial_": True}],
            ["x", 3],
            "a mapping with _target_ and _partial_: true or null",
        ),
        ("ours", [{"_target_": "open"}, None], [3, {"a": 1}], "a mapping with _target_, a Sample or null"),
        ("other", ["left to what builds it"], [], ""),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(node, name, good, bad, expected):
    for value in good:
        check(node(**{name: value}), "data")
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            check(node(**{name: value}), "data")
        assert str(caught.value).startswith(f"data.{name}=")
        assert str(caught.value).endswith(f": expected {expected}")


def test_what_a_mapping_holds_is_refused_with_its_own_key(node):
    with pytest.raises(ConfigError, match=r"^optim\.rates\.llm=x: expected a number$"):
        check(node(rates={"vision": 1, "llm": "x"}), "optim")


def test_an_unknown_name_is_refused_under_partial_and_deep_within(node):
    with pytest.raises(ConfigError, match=r"^optim\.wole: t takes no such argument; did you mean optim\.whole\?$"):
        check(node(wole=1), "optim")
    with pytest.raises(ConfigError, match=r"^data\.train\.1\.made\.zzz: t takes no such argument$"):
        check({"train": [node(), node(made=node(zzz=1))]}, "data")
    check({"_target_": "open", "anything": 1}, "data")


def test_a_target_that_is_not_there_is_left_to_what_builds_it():
    check({"_target_": "macaw_lit.nowhere.Thing", "a": 1}, "data")


@pytest.mark.parametrize(
    "choice",
    [
        ["experiment=demo"],
        ["experiment=macaw_7b", "paths.data_dir=d", "model.llm.tokenizer=t"],
        ["experiment=demo", "trainer=fsdp_bf16", "logger=many", "trainer.devices='0,1'"],
        ["experiment=demo", "trainer=deepspeed_zero3_offload_fp16", "logger=mlflow", "trainer.devices=[0,1]"],
        ["experiment=demo", "callbacks=[default,best,early_stopping,throughput,modality_loss,alignment_health]"],
        ["experiment=demo", "debug=overfit", "trainer.precision=32", "trainer.devices=auto", "seed=4294967295"],
    ],
)
def test_shipped_configs_pass(monkeypatch, choice):
    monkeypatch.setattr(build, "_PACKAGES", {})  # those of loggers are extras, which need not be here
    check_settings(composed(choice))


def composed(words: list[str]) -> Any:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=["paths.root_dir=.", "paths.run_dir=.", *words])
