from collections import Counter

import notebook
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import Vocabulary, windows
from makemore_pl.windows import (
    Counts,
    add_counts,
    align_counts,
    build_windows,
    count_windows,
    count_words,
    show_windows,
)

FIRST_FIVE = """
... e|..e m|.em m|emm a|mma .
... o|..o l|.ol i|oli v|liv i|ivi a|via .
... a|..a v|.av a|ava .
... i|..i s|.is a|isa b|sab e|abe l|bel l|ell a|lla .
... s|..s o|.so p|sop h|oph i|phi a|hia .
"""

WORDS = st.lists(st.text(alphabet="abñ名.", min_size=1, max_size=9), min_size=1, max_size=30)


def test_the_first_five_names_give_the_32_rows_of_the_notebook(names):
    vocabulary = Vocabulary.from_words(names)
    X, Y = build_windows(names[:5], vocabulary, 3)
    assert (X.shape, X.dtype) == ((32, 3), torch.int64)
    assert (Y.shape, Y.dtype) == ((32,), torch.int64)
    rows = [row.split() for line in FIRST_FIVE.split("\n")[1:-1] for row in line.split("|")]
    assert show_windows(X, Y, vocabulary) == "\n".join(f"{x} --> {y}" for x, y in rows)
    assert X[3].tolist() == [5, 13, 13]


@given(WORDS, st.integers(1, 12))
def test_windows_are_those_of_the_double_loop(words, block_size):
    X, Y = build_windows(words, Vocabulary.from_words(words), block_size)
    expected_X, expected_Y = notebook.build_dataset(words, notebook.stoi(words), block_size)
    assert torch.equal(X, expected_X)
    assert torch.equal(Y, expected_Y)


def test_no_words_give_no_windows():
    X, Y = build_windows([], Vocabulary("ab"), 3)
    assert X.shape == (0, 3)
    assert Y.shape == (0,)


def test_block_size_must_be_positive():
    with pytest.raises(ValueError, match="block_size is 0"):
        build_windows(["a"], Vocabulary("a"), 0)


@given(WORDS, st.integers(1, 12))
def test_counts_are_those_of_a_dictionary(words, block_size):
    vocabulary = Vocabulary.from_words(words)
    X, Y = build_windows(words, vocabulary, block_size)
    counts = count_windows(X, Y, len(vocabulary))
    assert [tuple(x) for x in counts.contexts.tolist()] == sorted({tuple(x) for x in X.tolist()})
    expected = Counter(zip(map(tuple, X.tolist()), Y.tolist(), strict=True))
    pairs = list(zip(map(tuple, counts.contexts[counts.row].tolist()), counts.y.tolist(), strict=True))
    assert pairs == sorted(expected)
    assert counts.n.tolist() == [expected[pair] for pair in pairs]
    assert counts.totals().tolist() == list(dict(sorted(Counter(map(tuple, X.tolist())).items())).values())


@given(WORDS, WORDS, st.integers(1, 12))
def test_counts_of_two_lists_add_up(first, second, block_size):
    vocabulary = Vocabulary.from_words(first + second)
    counted = [
        count_windows(*build_windows(words, vocabulary, block_size), len(vocabulary))
        for words in (first, second, first + second)
    ]
    assert same(add_counts(counted[0], counted[1]), counted[2])
    none = Counts.empty(block_size, len(vocabulary))
    assert same(add_counts(none, counted[0]), counted[0])


@given(WORDS, WORDS, st.integers(1, 4))
def test_aligned_counts_are_the_counts_of_each_over_the_contexts_of_all(first, second, block_size):
    vocabulary = Vocabulary.from_words(first + second)
    V = len(vocabulary)
    windows_of = [build_windows(words, vocabulary, block_size) for words in (first, second)]
    aligned = align_counts(*(count_windows(X, Y, V) for X, Y in windows_of))
    expected = [Counter(zip(map(tuple, X.tolist()), Y.tolist(), strict=True)) for X, Y in windows_of]
    every = sorted(expected[0] | expected[1])
    for own, its in zip(aligned, expected, strict=True):
        assert list(zip(map(tuple, own.contexts[own.row].tolist()), own.y.tolist(), strict=True)) == every
        assert own.n.tolist() == [its[pair] for pair in every]


@given(WORDS, st.integers(1, 4), st.data())
def test_counts_of_some_contexts_are_dense_ones(words, block_size, data):
    vocabulary = Vocabulary.from_words(words)
    X, Y = build_windows(words, vocabulary, block_size)
    counts = count_windows(X, Y, len(vocabulary))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(counts))] * 2)))
    expected = torch.zeros(len(counts), len(vocabulary), dtype=torch.int64)
    rows = {tuple(x): i for i, x in enumerate(counts.contexts.tolist())}
    for x, y in zip(X.tolist(), Y.tolist(), strict=True):
        expected[rows[tuple(x)], y] += 1
    assert torch.equal(counts[:], expected)
    assert torch.equal(counts[start:stop], expected[start:stop])
    assert torch.equal(counts[start : stop + 9], expected[start : stop + 9])


def test_thousands_of_characters_take_no_more_memory_than_their_windows():
    words = [chr(0x4E00 + i % 8000) + chr(0x4E00 + 7 * i % 8009) for i in range(40000)]
    counts = count_words(words, Vocabulary.from_words(words), 3)
    assert len(counts) * counts.vocab_size > 2**28  # dense, these would be gigabytes
    assert len(counts.n) <= 3 * 40000
    assert int(counts.n.sum()) == 3 * 40000
    assert counts[5:7].shape == (2, counts.vocab_size)


def same(first, second):
    fields = ("contexts", "row", "y", "n")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in fields)


def test_counting_part_by_part_is_counting_at_once(names, monkeypatch):
    vocabulary = Vocabulary.from_words(names)
    expected = count_windows(*build_windows(names[:1000], vocabulary, 3), 27)
    for words_per_part in (1, 7, 999, 1000, 5000):
        monkeypatch.setattr(windows, "WORDS_PER_PART", words_per_part)
        found = count_words(names[:1000], vocabulary, 3)
        assert same(found, expected)


def test_contexts_that_do_not_fit_into_64_bits_are_counted_too():
    words = [chr(0x4E00 + i % 997) + chr(0x4E00 + i % 991) + "後" * (i % 40) for i in range(2000)]
    vocabulary = Vocabulary.from_words(words)
    assert len(vocabulary) ** 20 > 2**63
    X, Y = build_windows(words, vocabulary, 20)
    counts = count_windows(X, Y, len(vocabulary))
    assert [tuple(x) for x in counts.contexts.tolist()] == sorted({tuple(x) for x in X.tolist()})
    expected = Counter(zip(map(tuple, X.tolist()), Y.tolist(), strict=True))
    pairs = zip(map(tuple, counts.contexts[counts.row].tolist()), counts.y.tolist(), strict=True)
    assert dict(zip(pairs, counts.n.tolist(), strict=True)) == expected
