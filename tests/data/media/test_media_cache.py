from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from macaw_lit.data.media import MediaCache
from macaw_lit.errors import MediaError
from macaw_lit.types import MediaRef

SIZE = 8 * 8 * 3


def pictures(folder: Path, count: int) -> list[MediaRef]:
    refs = []
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        refs.append(MediaRef("image", folder / f"{number}.png"))
    return refs


def test_kept_media_need_no_file(tmp_path: Path) -> None:
    (ref,) = pictures(tmp_path, 1)
    cache = MediaCache(SIZE)
    first = cache.load(ref, "image")
    Path(ref.path).unlink()
    assert cache.load(ref, "image") is first


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    one, two, three = pictures(tmp_path, 3)
    cache = MediaCache(2 * SIZE)
    kept = [cache.load(ref, "image") for ref in (one, two)]
    assert cache.load(one, "image") is kept[0]
    cache.load(three, "image")
    assert cache.size == 2 * SIZE
    assert cache.load(one, "image") is kept[0]
    assert cache.load(two, "image") is not kept[1]


def test_nothing_is_kept_by_default_nor_what_is_too_big(tmp_path: Path) -> None:
    (ref,) = pictures(tmp_path, 1)
    for cache in (MediaCache(), MediaCache(SIZE - 1)):
        first = cache.load(ref, "image")
        second = cache.load(ref, "image")
        assert second is not first
        np.testing.assert_array_equal(first, second)
        assert cache.size == 0


def test_errors_are_not_kept(tmp_path: Path) -> None:
    cache = MediaCache(SIZE)
    ref = MediaRef("image", tmp_path / "0.png")
    with pytest.raises(MediaError):
        cache.load(ref, "image")
    pictures(tmp_path, 1)
    assert cache.load(ref, "image").shape == (8, 8, 3)
