import hashlib

import notebook
import pytest

from makemore_pl.split import hash_words, split_words


def test_the_split_is_that_of_the_lecture(names):
    assert split_words(names) == notebook.split(names)
    assert [sum(len(word) + 1 for word in part) for part in split_words(names)] == [182518, 22939, 22689]


def test_another_seed_and_other_fractions_split_otherwise():
    words = [str(i) for i in range(100)]
    train, val, test = split_words(words, 0.7, 0.1, seed=1)
    assert [len(train), len(val), len(test)] == [70, 10, 20]
    assert sorted(train + val + test) == sorted(words)
    assert split_words(words, 0.7, 0.1, seed=2)[0] != train


def test_nothing_need_be_held_back():
    train, val, test = split_words(["a", "b", "c"], 1, 0)
    assert sorted(train) == ["a", "b", "c"]
    assert (val, test) == ([], [])


@pytest.mark.parametrize("fractions", [(0, 0.5), (0.8, -0.1), (0.8, 0.3), (1.1, 0), (float("nan"), 0)])
def test_fractions_outside_their_range_are_refused(fractions):
    with pytest.raises(ValueError, match="expected shares of 1"):
        split_words(["a"] * 100, *fractions)


def test_too_few_words_for_the_split_are_refused():
    with pytest.raises(
        ValueError, match=r"^10% of 5 words leaves no validation word; add words or raise val_fraction "
    ):
        split_words(["a"] * 5)
    with pytest.raises(ValueError, match=r"^80% of 1 word leaves no training word; add words or raise train_fraction "):
        split_words(["a"])


# The split by hash.


def test_the_hash_sends_equal_words_together(names):
    train, val, test = hash_words(names * 2)
    assert not set(train) & set(val)
    assert not set(val) & set(test)
    assert not set(test) & set(train)
    assert sorted(train + val + test) == sorted(names * 2)
    chosen = set(train)
    assert train == [word for word in names * 2 if word in chosen]


def test_the_hash_is_one_that_anybody_can_compute(names):
    """Blake2b of the seed, a space and the word: the first 8 bytes as a share of 2**64."""
    shares = [
        int.from_bytes(hashlib.blake2b(f"7 {word}".encode(), digest_size=8).digest(), "big") / 2**64
        for word in names[:2000]
    ]
    train, val, test = hash_words(names[:2000], 0.7, 0.1, seed=7)
    assert train == [word for word, share in zip(names, shares, strict=False) if share < 0.7]
    assert val == [word for word, share in zip(names, shares, strict=False) if 0.7 <= share < 0.8]
    assert test == [word for word, share in zip(names, shares, strict=False) if share >= 0.8]


def test_the_hash_keeps_the_shares():
    """Of distinct words, to five standard deviations."""
    words = [f"{number}" for number in range(100_000)]
    for seed in (1, 2):
        sizes = [len(split) for split in hash_words(words, 0.8, 0.1, seed)]
        for size, share in zip(sizes, (0.8, 0.1, 0.1), strict=True):
            assert abs(size - share * 100_000) < 5 * (100_000 * share * (1 - share)) ** 0.5
    assert hash_words(words, seed=1)[1] != hash_words(words, seed=2)[1]


def test_the_hash_need_hold_nothing_back(names):
    assert hash_words(names, 1, 0) == (names, [], [])
    assert hash_words(names, 0.8, 0)[1] == []
    assert hash_words(names, 0.8, 0.2)[2] == []
    with pytest.raises(ValueError, match="expected shares of 1"):
        hash_words(names, 0.8, 0.3)
