"""Wordings against brute force over all pairs, and MinHash against the Jaccard that it estimates."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macaw_lit.errors import ConfigError
from macaw_lit.generation.similar import Wordings, jaccard, shingles

WORDS = "what colour is the big small red cup bus man on table here now then".split()


def brute_force(questions, alike):
    """The same rule without MinHash: the first opening that is near enough, each compared with all."""
    openings, places, equal = [], [], {}
    for words in map(tuple, questions):
        if words not in equal:
            near = [n for n, other in enumerate(openings) if jaccard(shingles(words), shingles(other)) >= alike]
            if not near:
                openings.append(words)
            equal[words] = near[0] if near else len(openings) - 1
        places.append(equal[words])
    return places


@pytest.mark.parametrize("alike", [0.6, 0.8, 1.0])
def test_wordings_are_those_of_brute_force(alike):
    rng = random.Random(0)
    questions = [rng.choices(WORDS, k=rng.randint(3, 9)) for _ in range(60)]
    for _ in range(240):  # changed copies, so that many are near
        copy = list(rng.choice(questions))
        copy[rng.randrange(len(copy))] = rng.choice(WORDS)
        questions.append(copy if rng.random() < 0.7 else [*copy, rng.choice(WORDS)])
    wordings = Wordings(alike)
    found = [wordings.place(words) for words in questions]
    wanted = brute_force(questions, alike)
    assert len(set(wanted)) < len(set(map(tuple, questions))) or alike == 1.0
    openings = {}
    for place, words in zip(found, questions, strict=True):  # whoever is taken together is alike, without exception
        assert jaccard(shingles(openings.setdefault(place, words)), shingles(words)) >= alike
    # A pair that is just alike is missed with probability .02: two of a hundred wordings more than by brute force.
    assert len(set(found)) == len(set(wanted)) if alike == 1.0 else 0 <= len(set(found)) - len(set(wanted)) <= 4


def test_equal_words_are_one_wording_and_the_like_another_without_a_share():
    wordings = Wordings(None)
    assert [wordings.place(text.split()) for text in ("a b c", "a b", "a b c", "")] == [0, 1, 0, 2]
    assert [Wordings(0.8).place([]) for _ in range(2)] == [0, 0]


def test_signatures_estimate_the_jaccard():
    """A band of r equal minima has probability Jʳ; 32 bands give a mean with a standard deviation of .09 at most."""
    rng, wordings = random.Random(1), Wordings(0.6)
    shares, truths = [], []
    for _ in range(200):
        left = frozenset(f"{rng.random()}" for _ in range(40))
        right = frozenset(rng.sample(sorted(left), 34)) | {f"{rng.random()}" for _ in range(4)}
        bands = zip(wordings._signature(left), wordings._signature(right), strict=True)
        shares.append(sum(a == b for a, b in bands) / 32)
        truths.append(jaccard(left, right) ** wordings.rows)
    assert sum(shares) / 200 == pytest.approx(sum(truths) / 200, abs=0.03)  # five standard errors


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcé\ud800"), max_size=5), max_size=12))
def test_any_words_have_a_place_and_the_order_alone_decides(questions):
    first, again = Wordings(0.7), Wordings(0.7)
    places = [first.place(words) for words in questions]
    assert places == [again.place(words) for words in questions]
    assert sorted(set(places)) == list(range(len(set(places))))


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.5])
def test_shares_that_cannot_work_are_refused(alike):
    with pytest.raises(ConfigError, match=f"alike={alike}: expected a share from 0.6 to 1"):
        Wordings(alike)
