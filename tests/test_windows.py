from collections import Counter

import notebook
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import Vocabulary, windows
from makemore_pl.windows import (
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
    contexts, counts = count_windows(X, Y, len(vocabulary))
    assert [tuple(x) for x in contexts.tolist()] == sorted({tuple(x) for x in X.tolist()})
    expected = Counter((tuple(x), y) for x, y in zip(X.tolist(), Y.tolist(), strict=True))
    found = {(tuple(contexts[i].tolist()), v): int(counts[i, v]) for i, v in counts.nonzero().tolist()}
    assert found == expected


@given(WORDS, WORDS, st.integers(1, 12))
def test_counts_of_two_lists_add_up(first, second, block_size):
    vocabulary = Vocabulary.from_words(first + second)
    counted = [
        count_windows(*build_windows(words, vocabulary, block_size), len(vocabulary))
        for words in (first, second, first + second)
    ]
    for ours, theirs in zip(add_counts(counted[0], counted[1]), counted[2], strict=True):
        assert torch.equal(ours, theirs)


@given(WORDS, WORDS, st.integers(1, 4))
def test_aligned_counts_are_the_counts_of_each_over_the_contexts_of_all(first, second, block_size):
    vocabulary = Vocabulary.from_words(first + second)
    V = len(vocabulary)
    windows_of = [build_windows(words, vocabulary, block_size) for words in (first, second)]
    contexts, counts = align_counts(*(count_windows(X, Y, V) for X, Y in windows_of))
    rows = [tuple(x) for x in contexts.tolist()]
    assert rows == sorted({tuple(x) for X, _ in windows_of for x in X.tolist()})
    for (X, Y), own in zip(windows_of, counts, strict=True):
        expected = Counter(zip(map(tuple, X.tolist()), Y.tolist(), strict=True))
        assert {(rows[i], v): int(own[i, v]) for i, v in own.nonzero().tolist()} == expected


def test_counting_part_by_part_is_counting_at_once(names, monkeypatch):
    vocabulary = Vocabulary.from_words(names)
    expected = count_windows(*build_windows(names[:1000], vocabulary, 3), 27)
    for words_per_part in (1, 7, 999, 1000, 5000):
        monkeypatch.setattr(windows, "WORDS_PER_PART", words_per_part)
        found = count_words(names[:1000], vocabulary, 3)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_contexts_that_do_not_fit_into_64_bits_are_counted_too():
    words = [chr(0x4E00 + i % 997) + chr(0x4E00 + i % 991) + "後" * (i % 40) for i in range(2000)]
    vocabulary = Vocabulary.from_words(words)
    assert len(vocabulary) ** 20 > 2**63
    X, Y = build_windows(words, vocabulary, 20)
    contexts, counts = count_windows(X, Y, len(vocabulary))
    assert [tuple(x) for x in contexts.tolist()] == sorted({tuple(x) for x in X.tolist()})
    expected = Counter(zip(map(tuple, X.tolist()), Y.tolist(), strict=True))
    assert {(tuple(contexts[i].tolist()), v): int(counts[i, v]) for i, v in counts.nonzero().tolist()} == expected
