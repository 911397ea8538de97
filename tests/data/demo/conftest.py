from pathlib import Path

import pytest

from macaw_lit.data.demo.render import Sizes, render

SMALL = Sizes(images=24, videos=8, sounds=8, texts=100, heldout=8)


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "demo"
    assert render(root, seed=3, sizes=SMALL, workers=1)
    return root
