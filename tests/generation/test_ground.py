import pytest

from macaw_lit.generation.ground import grounded, groundedness
from macaw_lit.generation.parse import Pair
from macaw_lit.generation.records import Record

RECORD = Record("1.jpg", "image", "coco", ("A man rides two horses along the beach.",), "Good morning.")


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ("The man is riding a horse.", 1.0),  # man, rid-ing, horse
        ("A woman rides a horse.", 2 / 3),  # woman is not there
        ("He says good morning to the dog.", 2 / 4),  # says, good, morning, dog
        ("Purple elephants dance.", 0.0),
        ("Yes, it is.", None),
    ],
)
def test_shares_by_hand(response, share):
    assert groundedness(Pair("What?", response), RECORD) == (None if share is None else pytest.approx(share))


def test_a_dialogue_stands_or_falls_with_its_least_response():
    good, bad, empty = Pair("a", "The man rides."), Pair("b", "Purple elephants."), Pair("c", "No.")
    assert grounded((good, empty), RECORD, 1.0)
    assert not grounded((good, bad), RECORD, 0.1)
    assert grounded((good, bad), RECORD, None)
