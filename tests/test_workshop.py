"""The workshop itself: the Makefile's help, the pins, the shape checks that tests run under."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

from macaw_lit.types import Media

ROOT = Path(__file__).resolve().parents[1]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *words], cwd=ROOT, env=env, capture_output=True, text=True)


def test_help_lists_every_target():
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    rules = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listing = make("help").stdout
    assert declared == rules
    assert [line.split()[0:2] for line in listing.splitlines()] == [["make", target] for target in declared]
    assert all(len(line.split(None, 2)[2]) > 10 for line in listing.splitlines())


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["notebooks"], *extras["deepspeed"]]
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(
        re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines
    )  # no paths, no local builds
    pinned = {normal(line.partition("==")[0]) for line in lines}
    assert {normal(re.match(r"[A-Za-z0-9._-]+", each)[0]) for each in wanted} <= pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_an_older_python_is_turned_away_in_one_line(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("install", f"VENV={tmp_path}/venv", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"error: {old} is not Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_wrong_shapes_are_caught_under_pytest():
    Media(torch.zeros(2, 3), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(jaxtyping.TypeCheckError):
        Media(torch.zeros(2, 3), torch.zeros(4, dtype=torch.bool))
    with pytest.raises(jaxtyping.TypeCheckError):
        Media(np.zeros((2, 3)), torch.zeros(1, 4, dtype=torch.bool))
