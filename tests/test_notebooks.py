"""The notebooks: kept without outputs, and executed by the command of `make notebooks`."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
QUICKSTART = NOTEBOOKS / "quickstart.ipynb"
BRIEF = (
    "trainer.max_steps=4 trainer.log_every_n_steps=1 trainer.limit_val_batches=1 "
    "data.batch_size=4 data.num_workers=0 evaluation.n=2"
)


def cells(path: Path) -> dict[str, Any]:
    """The code cells by their id."""
    return {cell.id: cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_kept_without_outputs_and_traces_of_a_machine(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in cells(path).values() if cell.outputs or cell.execution_count is not None] == []
    assert re.findall(r"/(?:home|root|Users|tmp|work|mnt)/", path.read_text(encoding="utf-8")) == []


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """Runs the first cells as a kernel started in a folder below tmp_path would; returns what they define."""
    monkeypatch.delenv("MACAW_RUN", raising=False)

    def run(folder: str = ".", *names: str) -> dict[str, Any]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        defined: dict[str, Any] = {}
        for name in ("setup", *names):
            exec(cells(QUICKSTART)[name].source, defined)
        return defined

    return run


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path.parent


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_finds_the_root_from_where_it_may_be_started(begin, tmp_path, folder):
    assert begin(folder)["WORLD"] == tmp_path / "data" / "demo"


def test_takes_the_newest_finished_run_unless_told_otherwise(begin, tmp_path, monkeypatch):
    touch(tmp_path / "data/demo/world.json")
    runs = tmp_path / "logs/train/runs"
    older = touch(runs / "2031-01-31_23-59-59/modality_use.json")
    newest = touch(runs / "2031-02-01_00-00-00/modality_use.json")
    touch(runs / "2031-02-01_00-00-01/config.yaml")  # broken off
    assert begin("notebooks", "run")["run"] == newest
    monkeypatch.setenv("MACAW_RUN", "logs/train/runs/2031-01-31_23-59-59")
    assert begin("notebooks", "run")["run"] == older


def test_a_command_that_fails_shows_what_it_said(begin):
    with pytest.raises(RuntimeError, match=r"exit code 1:\n.*lerning_rate"):
        begin()["command"]("train", "lerning_rate=1")


@pytest.fixture(scope="module")
def executed(tmp_path_factory, tiny_run) -> Path:
    """A folder with a tiny world, the run that the notebook trained there, and the notebook with its outputs."""
    root = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(tiny_run.root / "data", root / "data")
    (root / "notebooks").mkdir()
    shutil.copy(QUICKSTART, root / "notebooks")
    own = {
        f"{name}_DIR": str(root / ".jupyter" / name) for name in ("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME")
    }
    env = os.environ | own | {"IPYTHONDIR": str(root / ".ipython"), "MACAW_OVERRIDES": BRIEF}
    for name in ("MACAW_RUN", "MPLBACKEND", "PYTEST_CURRENT_TEST"):  # a kernel draws and prints otherwise with these
        env.pop(name, None)
    command = [Path(sys.executable).with_name("jupyter-execute"), "--inplace", "quickstart.ipynb"]
    done = subprocess.run(command, cwd=root / "notebooks", env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture
def outputs(executed):
    return {name: cell.outputs for name, cell in cells(executed / "notebooks/quickstart.ipynb").items()}


def said(outputs: list[Any]) -> str:
    """What a cell printed to stdout, and its tables without colours."""
    texts = [out.text if out.output_type == "stream" else out.data.get("text/plain", "") for out in outputs]
    return re.sub(r"\x1b\[\d+m", "", "".join(texts))


def data(outputs: list[Any], mime: str) -> list[str]:
    return [out.data[mime] for out in outputs if "data" in out and mime in out.data]


def run_of(root: Path) -> Path:
    (run,) = (root / "logs/train/runs").iterdir()
    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trains_where_there_is_no_run(executed, outputs):
    run = run_of(executed)
    assert (run / "model/model.safetensors").is_file()
    assert re.fullmatch(rf"macaw_lit\.train … \d+ s\nusing the run {run.name}\n", said(outputs["run"]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_cell_fails_or_complains(outputs):
    assert [name for name, outs in outputs.items() if any(out.output_type == "error" for out in outs)] == []
    assert [out.text for outs in outputs.values() for out in outs if out.get("name") == "stderr"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shows_pictures_strips_and_sounds(outputs):
    assert len(data(outputs["look"], "image/png")) == len(data(outputs["strips"], "image/png")) == 1
    *sounds, video = data(outputs["listen"], "text/html")
    assert len(sounds) == 3  # kind, pitch, count
    assert all("<audio" in sound and 'src="data:audio/x-wav;base64,UklGR' in sound for sound in sounds)
    assert "<video" in video
    assert 'src="data:video/mp4;base64,' in video


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_asks_one_question_of_every_type(executed, outputs):
    kinds = json.loads((executed / "data/demo/question_types.json").read_text(encoding="utf-8"))
    text = said(outputs["ask-heldout"])
    assert {name for name in kinds if f" {name} " in text} == set(kinds)
    assert re.match(r"\d+ of 2\d right", text)  # audio types are asked about clips and sounds
    assert all(f"{role}: " in said(outputs["dialogue"]) for role in ("user", "assistant"))
    for words in ("with its picture", "without a picture", "with another picture", "cannot be known"):
        assert words in said(outputs["without"])
    for words in ("video and sound", "video alone", "sound alone"):
        assert words in said(outputs["both"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shows_the_table_and_the_plots_of_the_run(executed, outputs):
    run = run_of(executed)
    use = json.loads((run / "modality_use.json").read_text(encoding="utf-8"))
    rows = dict(re.findall(r"^│ (\S+) +│(.*)│$", said(outputs["table"]), re.MULTILINE))
    for name, row in use.items():
        needs, n, chance, true, *_, verdict = [cell.strip() for cell in rows[name].split("│")]
        assert needs == (" and ".join(row["media"]) or "text")
        assert (int(n), float(chance), float(true)) == (row["n"], round(row["chance"], 2), round(row["true"], 2))
        assert verdict == row["verdict"]
    pictures = [base64.b64decode(png) for png in data(outputs["plots"], "image/png")]
    assert pictures == [(run / name).read_bytes() for name in ("accuracy.png", "gallery.png", "loss.png")]
