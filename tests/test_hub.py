"""What a name leads to: a file, a folder, or a model of the hub, of which one format of weights is fetched."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

from macaw_lit import hub
from macaw_lit.errors import WeightsError
from macaw_lit.hub import local_folder, locate


def test_what_is_here_is_taken(tmp_path, monkeypatch):
    file = tmp_path / "clip.pt"
    file.touch()
    assert locate(str(file)) == file
    assert locate(str(tmp_path)) == local_folder(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name") == Path("owner/name"), "a folder goes before a hub id"
    with pytest.raises(WeightsError, match="clip.pt is no folder: give a folder, or a hub id such as"):
        local_folder(str(file))
    for name in ("/nowhere/at/all", "name", "../owner/name", "a/b/c"):
        with pytest.raises(WeightsError, match="not found: give an existing file or folder, or a hub id such as"):
            locate(name)


@pytest.fixture
def offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A hub with one model of the named files; returns, once filled, the names that were fetched."""

    def offer(*names: str) -> list[str]:
        def snapshot(source: str, allow_patterns: list[str], ignore_patterns: list[str] | None = None) -> str:
            assert source == "owner/name"
            for name in names:
                ignored = any(fnmatch(name, pattern) for pattern in ignore_patterns or [])
                if any(fnmatch(name, pattern) for pattern in allow_patterns) and not ignored:
                    (tmp_path / name).parent.mkdir(exist_ok=True)
                    (tmp_path / name).touch()
            return str(tmp_path)

        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        assert locate("owner/name") == tmp_path
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())

    return offer


def test_weights_are_fetched_in_one_format_the_safest_there_is(offers):
    found = offers("config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.safetensors")
    assert found == ["config.json", "model.safetensors"]


def test_an_older_format_will_do_where_there_is_no_other(offers):
    assert offers("config.json", "pytorch_model.bin", "code.py") == ["config.json", "pytorch_model.bin"]


def test_without_network_it_is_one_clear_line():
    for weights in (True, False):
        with pytest.raises(
            WeightsError, match="owner/name is neither a folder nor a hub id that can be reached"
        ) as caught:
            local_folder("owner/name", weights)
        assert "\n" not in str(caught.value)
