from collections import Counter, defaultdict
from itertools import chain

import notebook
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import NGram, Sampler, Vocabulary, ngram
from makemore_pl.sampling import Draw, score_words
from makemore_pl.windows import build_windows, count_words

WORDS = st.lists(st.text(alphabet="abñ名.", min_size=1, max_size=7), min_size=1, max_size=40)


def kneser_ney(words, block_size, stoi=None):
    """Interpolated, modified Kneser-Ney with dictionaries, an n-gram at a time. Gives context, character -> p."""
    stoi = stoi or notebook.stoi(words)
    X, Y = notebook.build_dataset(words, stoi, block_size)
    counts = [defaultdict(Counter) for _ in range(block_size + 1)]
    for context, y in zip(map(tuple, X.tolist()), Y.tolist(), strict=True):
        counts[block_size][context][y] += 1
    for k in reversed(range(block_size)):
        for context, following in counts[k + 1].items():
            for y in following:
                counts[k][context[1:]][y] += 1  # one more character that came before
    taken = []
    for of_length in counts:
        n = Counter(count for following in of_length.values() for count in following.values())
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            d = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
            taken.append([max(y, x) for x in d])
        else:
            taken.append([0.75] * 3)
    V = len(stoi) + 1

    def probability(context, y, k=block_size):
        if k < 0:
            return 1 / V
        shorter = probability(context[1:] if k else context, y, k - 1)
        following = counts[k].get(context)
        if not following:
            return shorter
        discount = {x: taken[k][min(count, 3) - 1] for x, count in following.items()}
        seen = max(following[y] - discount.get(y, 0), 0) / following.total()
        return seen + sum(discount.values()) / following.total() * shorter

    return probability


@given(WORDS, st.integers(1, 8), st.data())
def test_it_is_the_slow_one(words, block_size, data):
    vocabulary = Vocabulary.from_words(words)
    model = NGram.from_words(words, vocabulary, block_size)
    ids = st.lists(st.integers(0, len(vocabulary) - 1), min_size=block_size, max_size=block_size)
    contexts = data.draw(st.lists(ids, min_size=1, max_size=5))
    contexts += build_windows(words[:3], vocabulary, block_size)[0].tolist()
    slow = kneser_ney(words, block_size)
    expected = [[slow(tuple(context), y) for y in range(len(vocabulary))] for context in contexts]
    fast = model(torch.tensor(contexts)).exp()
    torch.testing.assert_close(fast, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("block_size", [1, 3, 8])
def test_it_is_the_slow_one_on_names(block_size, names):
    model, slow = NGram.from_words(names, Vocabulary.from_words(names), block_size), kneser_ney(names, block_size)
    X, _ = notebook.build_dataset(names[::5000] + ["qzx"], notebook.stoi(names), block_size)
    expected = [[slow(tuple(context), y) for y in range(27)] for context in X.tolist()]
    torch.testing.assert_close(model(X).exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@given(WORDS, st.integers(1, 8), st.data())
def test_the_probabilities_of_every_context_sum_to_one(words, block_size, data):
    vocabulary = Vocabulary.from_words(words)
    model = NGram.from_words(words, vocabulary, block_size)
    seed = data.draw(st.integers(0, 2**31))
    X = torch.randint(len(vocabulary), (300, block_size), generator=torch.Generator().manual_seed(seed))
    p = model(X).exp()
    assert (p > 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(300, dtype=torch.float64), rtol=0, atol=1e-12)


def test_by_hand():
    """The word "ab" in 2 letters, T=1: one window each of . -> a, a -> b, b -> . and 0.75 taken from each count."""
    model = NGram.from_words(["ab"], Vocabulary("ab"), 1)
    unigram = (1 - 0.75) / 3 + 0.75 / 3  # each character came after one other; 0.75 * 3 / 3 is left for 1/3
    p = model(torch.tensor([[0], [1], [2]])).exp()
    other, own = 0.75 * unigram, 0.25 + 0.75 * unigram
    assert p.flatten().tolist() == pytest.approx([other, own, other, other, other, own, own, other, other])


@pytest.mark.parametrize(
    ("block_size", "discount", "val", "test"),
    [(3, 0.75, 2.0577, 2.0671), (5, 0.85, 1.9732, 1.9874), (6, 0.9, 1.9762, 1.9910), (8, 0.9, 1.9885, 2.0036)],
)
def test_with_one_discount_it_gives_the_figures_that_others_measured(
    block_size, discount, val, test, names, monkeypatch
):
    monkeypatch.setattr(ngram, "discounts", lambda n: torch.full((3,), discount, dtype=torch.float64))
    vocabulary = Vocabulary.from_words(names)
    parts = [count_words(words, vocabulary, block_size) for words in notebook.split(names)]
    model = NGram(parts[0])
    for counts, expected in zip(parts[1:], (val, test), strict=True):
        assert -(model(counts.contexts) * counts[:]).sum().item() / counts[:].sum().item() == pytest.approx(
            expected, abs=5e-5
        )


def test_it_samples_and_scores_like_a_network(names):
    vocabulary = Vocabulary.from_words(names)
    model = NGram.from_words(names, vocabulary, 3)
    drawn = list(chain.from_iterable(Draw(Sampler(2000), model, vocabulary, 3)))
    assert 5.5 < sum(map(len, drawn)) / 2000 < 6.7  # names.txt: 6.1
    assert len(set(drawn) & set(names)) > 200
    X, Y = build_windows(["emma"], vocabulary, 3)
    slow = kneser_ney(names, 3)
    expected = torch.tensor([slow(tuple(x), y) for x, y in zip(X.tolist(), Y.tolist(), strict=True)]).log().sum()
    assert score_words(["emma"], model, vocabulary, 3).item() == pytest.approx(expected.item(), rel=1e-5)
