"""The built wheel works from any folder, without the working copy."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from macaw_lit import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", folder]
    subprocess.run([sys.executable, "-m", "pip", "wheel", ROOT, *options], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run `python -m macaw_lit.<words>` with the wheel's files alone, in an empty folder."""
    target, home = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("elsewhere")
    zipfile.ZipFile(wheel).extractall(target)

    def run(*words):
        command = [sys.executable, "-m", *words]
        env = {**os.environ, "PYTHONPATH": str(target)}
        return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True)

    run.target = target
    return run


def test_it_holds_the_configs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"macaw_lit-{__version__}-py3-none-any.whl"
    shipped = {name.removeprefix("macaw_lit/") for name in names if name.startswith("macaw_lit/conf/")}
    local = ROOT / "conf" / "local"
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml") if not path.is_relative_to(local)}
    assert shipped == ours
    assert {name.partition("/")[0] for name in names} == {
        "macaw_lit",
        "hydra_plugins",
        f"macaw_lit-{__version__}.dist-info",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_commands_run_from_another_folder(installed):
    done = installed("macaw_lit.train", "--cfg", "job", "trainer=cpu", "seed=7")
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in done.stdout
    done = installed("macaw_lit.predict", "model=nowhere", "instruction=What, is (this)?", "--info", "searchpath")
    assert f"file://{installed.target}/macaw_lit/conf" in done.stdout


@pytest.mark.slow
def test_mistakes_are_one_line(installed):
    done = installed("macaw_lit.train", "trainer.max_step=1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: trainer.max_step: no such key; did you mean trainer.max_steps?\n"
    done = installed("macaw_lit.predict", "model=nowhere", "instruction=hi")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1
