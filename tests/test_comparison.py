import math
import re
from collections import Counter

import notebook
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import MLP, NGram, windows
from makemore_pl.comparison import Comparison, Mixture, Score, best_weight, entropy, loss, measure, show
from makemore_pl.windows import Counts, count_words


def test_figures_are_those_of_the_windows_one_by_one(names, monkeypatch):
    monkeypatch.setattr(windows, "CELLS_AT_ONCE", 27 * 100)
    model = MLP(init="lecture")
    sets = [names[:300], names[100:200]]
    counted = [count_words(words, model.vocabulary, 3) for words in sets]
    for words, counts, score in zip(sets, counted, measure(model, *counted), strict=True):
        X, Y = notebook.build_dataset(words, notebook.stoi(names))
        p = notebook.probabilities(dict(model.named_parameters()), X)
        rank = (p > p[torch.arange(len(Y)), Y][:, None]).sum(1)
        assert score.loss == pytest.approx(-p[torch.arange(len(Y)), Y].log().mean().item(), abs=1e-5)
        assert score.top1 == pytest.approx((rank == 0).double().mean().item(), abs=1e-9)
        assert score.top5 == pytest.approx((rank < 5).double().mean().item(), abs=1e-9)
        assert loss(model, counts) == pytest.approx(score.loss, rel=1e-9)


def test_the_mixture_is_one_of_probabilities():
    first = lambda context: torch.tensor([1.0, 2.0, 3.0]).repeat(len(context), 1)  # noqa: E731
    second = lambda context: torch.tensor([[0.0, -torch.inf, 0.0]]).repeat(len(context), 1)  # noqa: E731
    expected = 0.3 * torch.tensor([1.0, 2.0, 3.0]).double().softmax(0) + 0.7 * torch.tensor([0.5, 0.0, 0.5])
    context = torch.zeros(2, 3, dtype=torch.int64)
    for row in Mixture(first, second, 0.3)(context).exp():
        torch.testing.assert_close(row, expected)
    torch.testing.assert_close(Mixture(first, second, 0.0)(context).exp()[0], torch.tensor([0.5, 0, 0.5]).double())


@given(st.integers(0, 2**31))
def test_the_weight_of_the_mixture_is_the_best_of_all(seed):
    g = torch.Generator().manual_seed(seed)
    tables = torch.randn(2, 20, 5, generator=g, dtype=torch.float64).log_softmax(2)
    counts = torch.randint(0, 4, (20, 5), generator=g)
    row, y = counts.nonzero(as_tuple=True)
    counted = Counts(torch.arange(20)[:, None], row, y, counts[row, y], 5)
    first, second = (lambda context, table=table: table[context[:, 0]] for table in tables)
    weight = best_weight(first, second, counted)

    def loss(w):
        return -((w * tables[0].exp() + (1 - w) * tables[1].exp()).log() * counts).sum().item() / counts.sum().item()

    assert loss(weight) <= min(loss(w / 100) for w in range(101)) + 1e-5


def test_the_floor_of_block_size_3(names):
    """By plain counting; others measured 1.8691, perhaps in another order of the names."""
    train, _, _ = notebook.split(names)
    X, Y = (tensor.tolist() for tensor in notebook.build_dataset(train, notebook.stoi(names)))
    contexts, pairs = Counter(map(tuple, X)), Counter(zip(map(tuple, X), Y, strict=True))
    expected = -sum(n * math.log(n / contexts[x]) for (x, _), n in pairs.items()) / len(Y)
    assert expected == pytest.approx(1.8691, abs=0.0005)
    assert entropy(count_words(train, MLP().vocabulary, 3)) == pytest.approx(expected, abs=1e-9)


def test_a_comparison_scores_the_network_counting_and_their_mixture(names):
    vocabulary = MLP().vocabulary
    counts = [count_words(words, vocabulary, 3) for words in (names[:700], names[700:800], names[800:900])]
    network = NGram.from_words(names[1000:1500], vocabulary, 3)  # anything that gives logits
    compared = Comparison(network, counts[0], counts[1])
    scores = compared.score(*counts)
    mixture = f"mixture ({100 * compared.weight:.0f} % network)"
    assert list(scores) == ["network", "Kneser-Ney", mixture, "uniform"]
    assert scores["uniform"] == [Score(math.log(27), 1 / 27, 5 / 27)] * 3
    assert scores[mixture][1].loss < min(scores["network"][1].loss, scores["Kneser-Ney"][1].loss)
    losses = compared.losses(*counts)
    assert list(losses) == ["network", "Kneser-Ney", mixture]
    for who in losses:
        assert losses[who] == pytest.approx([score.loss for score in scores[who]], rel=1e-12)


@pytest.mark.parametrize(("given", "rows"), [((), ["network"]), ((0,), ["network", "Kneser-Ney"])])
def test_it_may_lack_counting_or_the_mixture(given, rows, names):
    counts = [count_words(names[:100], MLP().vocabulary, 3)]
    compared = Comparison(MLP(), counts[0] if given else None, None)
    assert list(compared.losses(*counts)) == rows
    assert list(compared.score(*counts)) == [*rows, "uniform"]
    assert compared.weight is None


def test_the_printed_table_has_the_figures_of_each_set():
    scores = {
        "network": [Score(2.0, 0.25, 0.5), Score(800.0, 0, 0)],
        "uniform": [Score(math.log(27), 1 / 27, 5 / 27)] * 2,
    }
    blocks = show(scores, ["val", "val, new words"]).split("\n\n")
    cells = [[re.split("  +", line) for line in block.split("\n")] for block in blocks]
    head = ["loss", "perplexity", "top 1", "top 5"]
    chance = ["uniform", "3.2958", "27.00", "3.7%", "18.5%"]
    assert cells == [
        [["val", *head], ["network", "2.0000", "7.39", "25.0%", "50.0%"], chance],
        [["val, new words", *head], ["network", "800.0000", "inf", "0.0%", "0.0%"], chance],
    ]
    assert {len(line) for block in blocks for line in block.split("\n")} == {66}
