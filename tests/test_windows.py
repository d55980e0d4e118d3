from collections import Counter

import notebook
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import Vocabulary, windows
from makemore_pl.windows import add_counts, build_windows, count_windows, count_words

FIRST_FIVE = """
... e|..e m|.em m|emm a|mma .
... o|..o l|.ol i|oli v|liv i|ivi a|via .
... a|..a v|.av a|ava .
... i|..i s|.is a|isa b|sab e|abe l|bel l|ell a|lla .
... s|..s o|.so p|sop h|oph i|phi a|hia .
"""

WORDS = st.lists(st.text(alphabet="abñ名.", min_size=1, max_size=9), min_size=1, max_size=30)


def pairs(X, Y):
    """How often each context and next character came, by a dictionary."""
    return Counter((*x, y) for x, y in zip(X.tolist(), Y.tolist(), strict=True))


def as_pairs(counts):
    """The same from counted windows, in their order; the contexts must be sorted and each have a pair."""
    assert counts.contexts.tolist() == sorted(counts.contexts[counts.row].unique(dim=0).tolist())
    rows = torch.cat([counts.contexts[counts.row], counts.y[:, None]], dim=1).tolist()
    return dict(zip(map(tuple, rows), counts.n.tolist(), strict=True))


def test_the_first_five_names_give_the_32_rows_of_the_notebook(names):
    vocabulary = Vocabulary.from_words(names)
    X, Y = build_windows(names[:5], vocabulary, 3)
    assert (X.shape, X.dtype, Y.shape, Y.dtype) == ((32, 3), torch.int64, (32,), torch.int64)
    rows = [row.split() for line in FIRST_FIVE.split("\n")[1:-1] for row in line.split("|")]
    assert [[vocabulary.decode(x), vocabulary.decode([y])] for x, y in zip(X.tolist(), Y.tolist(), strict=True)] == rows
    assert X[3].tolist() == [5, 13, 13]


@given(WORDS, st.integers(1, 12))
def test_windows_are_those_of_the_double_loop(words, block_size):
    X, Y = build_windows(words, Vocabulary.from_words(words), block_size)
    expected_X, expected_Y = notebook.build_dataset(words, notebook.stoi(words), block_size)
    assert torch.equal(X, expected_X)
    assert torch.equal(Y, expected_Y)


def test_no_words_give_no_windows():
    X, Y = build_windows([], Vocabulary("ab"), 3)
    assert (X.shape, Y.shape) == ((0, 3), (0,))
    assert len(count_words([], Vocabulary("ab"), 3)) == 0


@given(WORDS, st.integers(1, 12), st.data())
def test_counts_are_those_of_a_dictionary(words, block_size, data):
    vocabulary = Vocabulary.from_words(words)
    X, Y = build_windows(words, vocabulary, block_size)
    counts, expected = count_windows(X, Y, len(vocabulary)), pairs(X, Y)
    assert list(as_pairs(counts).items()) == sorted(expected.items())
    assert counts.totals().tolist() == [n for _, n in sorted(Counter(map(tuple, X.tolist())).items())]
    # The dense counts of some contexts.
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(counts))] * 2)))
    dense = [[expected[*x, y] for y in range(len(vocabulary))] for x in counts.contexts[start:stop].tolist()]
    assert counts[start:stop].tolist() == dense
    assert torch.equal(counts[start:], counts[start : len(counts) + 9])


@given(WORDS, WORDS, st.integers(1, 4))
def test_counts_of_two_lists_add_up(first, second, block_size):
    vocabulary = Vocabulary.from_words(first + second)
    own = [count_words(words, vocabulary, block_size) for words in (first, second)]
    together = pairs(*build_windows(first + second, vocabulary, block_size))
    assert list(as_pairs(add_counts(*own)).items()) == sorted(together.items())


@pytest.mark.parametrize("words_per_part", [1, 7, 1000])
def test_counting_part_by_part_is_counting_at_once(words_per_part, names, monkeypatch):
    vocabulary = Vocabulary.from_words(names)
    monkeypatch.setattr(windows, "WORDS_PER_PART", words_per_part)
    found = count_words(names[:1000], vocabulary, 3)
    assert as_pairs(found) == pairs(*build_windows(names[:1000], vocabulary, 3))


def test_contexts_that_do_not_fit_into_64_bits_are_counted_too():
    words = [chr(0x4E00 + i % 997) + chr(0x4E00 + i % 991) + "後" * (i % 40) for i in range(2000)]
    vocabulary = Vocabulary.from_words(words)
    assert len(vocabulary) ** 20 > 2**63
    X, Y = build_windows(words, vocabulary, 20)
    counts = count_windows(X, Y, len(vocabulary))
    assert list(as_pairs(counts).items()) == sorted(pairs(X, Y).items())
