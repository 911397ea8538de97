"""Drawing items, removing media and exchanging them."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from macaw_lit.evaluation.conditions import absent, derange, draw, kinds_of, shuffled
from macaw_lit.types import MediaRef, Sample, Turn


def item(number: int, answer: str = "red", media: tuple[MediaRef, ...] = ()) -> Sample:
    turns = (Turn("user", "What colour?", media), Turn("assistant", f"It is {answer}."))
    return Sample(turns, f"world/{number}/0", "world", {"type": "colour", "answer": answer})


def own(path: str) -> frozenset[str]:
    return frozenset({path})


def test_draw_takes_each_answer_equally_often_and_is_seeded() -> None:
    samples = [item(number, "abcdef"[number % 6] if number < 300 else "a") for number in range(600)]
    drawn = draw(samples, 200, random.Random(3))
    assert Counter(sample.meta["answer"] for sample in drawn) == dict.fromkeys("abcdef", 33)
    assert len({sample.uid for sample in drawn}) == 198
    assert [s.uid for s in draw(samples, 200, random.Random(3))] == [s.uid for s in drawn]
    assert [s.uid for s in draw(samples, 200, random.Random(4))] != [s.uid for s in drawn]


def test_draw_takes_all_of_few_and_the_responses_where_no_answer_is_named() -> None:
    few = [item(number, "a" if number else "b") for number in range(7)]
    assert {sample.uid for sample in draw(few, 7, random.Random(0))} == {sample.uid for sample in few}
    unnamed = [Sample(item(n, "ab"[n % 4 == 0]).turns, f"{n}", "world", {}) for n in range(40)]
    assert Counter(sample.turns[-1].text for sample in draw(unnamed, 20, random.Random(0))) == {
        "It is a.": 10,
        "It is b.": 10,
    }
    distinct = [item(number, f"word{number}") for number in range(50)]
    assert len(draw(distinct, 20, random.Random(0))) == 20


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=2, max_size=60), st.integers())
def test_derange_is_a_permutation_without_fixed_media_wherever_there_is_one(
    items: list[tuple[int, int]], seed: int
) -> None:
    paths = [own(str(path)) for path, _ in items]
    donors = derange(paths, [str(gold) for _, gold in items], random.Random(seed))
    if max(Counter(paths).values()) > len(paths) / 2:
        assert donors is None
        return
    assert donors is not None
    assert sorted(donors) == list(range(len(paths)))
    assert all(paths[place].isdisjoint(paths[donor]) for place, donor in enumerate(donors))


@given(st.lists(st.frozensets(st.sampled_from("abcdefgh"), min_size=1, max_size=3), max_size=30), st.integers())
def test_derange_never_leaves_a_shared_path_between_items_of_several_media(
    paths: list[frozenset[str]], seed: int
) -> None:
    donors = derange(paths, ["x"] * len(paths), random.Random(seed))
    if donors is not None:
        assert sorted(donors) == list(range(len(paths)))
        assert all(paths[place].isdisjoint(paths[donor]) for place, donor in enumerate(donors))


def test_derange_gives_every_answer_donors_of_all_answers_in_equal_shares() -> None:
    golds = [str(number % 4) for number in range(200)]
    for seed in range(20):
        donors = derange([own(str(number)) for number in range(200)], golds, random.Random(seed))
        assert donors is not None
        pairs = Counter((golds[place], golds[donor]) for place, donor in enumerate(donors))
        assert all(11 <= count <= 14 for count in pairs.values()), pairs  # 12.5 of each; a free one strays by 3 or more
        assert len(pairs) == 16


def test_derange_differs_between_seeds() -> None:
    paths = [own(str(number)) for number in range(30)]
    found = {tuple(derange(paths, ["x"] * 30, random.Random(seed)) or ()) for seed in range(10)}
    assert len(found) == 10


def test_absent_takes_one_kind_from_all_turns() -> None:
    clip, sound = MediaRef("video", "a.mp4"), MediaRef("audio", "a.mp4")
    sample = Sample((Turn("user", "1?", (clip, sound)), Turn("user", "2?", (sound,))), "u", "world", {"k": 1})
    deaf = absent(sample, "audio")
    assert [turn.media for turn in deaf.turns] == [(clip,), ()]
    assert [turn.text for turn in deaf.turns] == ["1?", "2?"]
    assert (deaf.uid, deaf.meta) == (sample.uid, sample.meta)
    assert kinds_of(sample) == ("video", "audio", "audio")
    assert absent(sample, "image") == sample


def test_shuffled_exchanges_one_kind_and_leaves_items_without_it() -> None:
    samples = [
        item(n, media=(MediaRef("video", f"{n}.mp4"), *([MediaRef("audio", f"{n}.mp4")] if n % 3 else [])))
        for n in range(12)
    ]
    exchanged = shuffled(samples, ["x"] * 12, "audio", random.Random(0))
    assert exchanged is not None
    for before, after in zip(samples, exchanged, strict=True):
        assert kinds_of(before) == kinds_of(after)
        assert before.turns[0].media[0] == after.turns[0].media[0]
        assert before.turns[0].media[1:] != after.turns[0].media[1:] or len(before.turns[0].media) == 1
    given = Counter(ref.path for sample in samples for ref in sample.turns[0].media[1:])
    assert given == Counter(ref.path for sample in exchanged for ref in sample.turns[0].media[1:])


def test_shuffled_keeps_the_number_of_media_of_each_turn() -> None:
    pair = item(0, media=(MediaRef("image", "a.jpg"), MediaRef("audio", "a.wav"), MediaRef("image", "b.jpg")))
    single = item(1, media=(MediaRef("image", "c.jpg"),))
    exchanged = shuffled([pair, single], ["x", "y"], "image", random.Random(0))
    assert exchanged is not None
    assert [ref.path for ref in exchanged[0].turns[0].media] == ["c.jpg", "a.wav", "c.jpg"]
    assert [ref.path for ref in exchanged[1].turns[0].media] == ["a.jpg"]


def test_shuffled_is_none_where_all_show_the_same_picture() -> None:
    samples = [item(n, media=(MediaRef("image", "a.jpg"),)) for n in range(4)]
    assert shuffled(samples, ["x"] * 4, "image", random.Random(0)) is None
