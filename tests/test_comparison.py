import re

import notebook
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import MLP, NGram, windows
from makemore_pl.comparison import Comparison, Mixture, best_weight, loss
from makemore_pl.report import table
from makemore_pl.windows import Counts, count_words


def test_the_loss_is_that_of_the_windows_one_by_one(names, monkeypatch):
    monkeypatch.setattr(windows, "CELLS_AT_ONCE", 27 * 100)
    model = MLP(init="lecture")
    X, Y = notebook.build_dataset(names[:300], notebook.stoi(names))
    p = notebook.probabilities(dict(model.named_parameters()), X)
    expected = -p[torch.arange(len(Y)), Y].log().mean().item()
    assert loss(model, count_words(names[:300], model.vocabulary, 3)) == pytest.approx(expected, abs=1e-5)


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


def test_a_comparison_has_the_network_counting_and_their_mixture(names):
    vocabulary = MLP().vocabulary
    counts = [count_words(words, vocabulary, 3) for words in (names[:700], names[700:800], names[800:900])]
    network = NGram.from_words(names[1000:1500], vocabulary, 3)  # anything that gives logits
    compared = Comparison(network, counts[0], counts[1])
    losses = compared.losses(*counts)
    mixture = f"mixture ({100 * compared.weight:.0f} % network)"
    assert list(losses) == ["network", "Kneser-Ney", mixture]
    assert losses[mixture][1] < min(losses["network"][1], losses["Kneser-Ney"][1])
    for name, predictor in {"network": network, "Kneser-Ney": NGram(counts[0])}.items():
        assert losses[name] == pytest.approx([loss(predictor, each) for each in counts], rel=1e-12)


@pytest.mark.parametrize(("given", "rows"), [((), ["network"]), ((0,), ["network", "Kneser-Ney"])])
def test_it_may_lack_counting_or_the_mixture(given, rows, names):
    counts = [count_words(names[:100], MLP().vocabulary, 3)]
    compared = Comparison(MLP(), counts[0] if given else None, None)
    assert list(compared.losses(*counts)) == rows
    assert compared.weight is None


def test_the_table_has_a_line_for_each_predictor():
    lines = table({"network": [2.0, 4.85e8], "Kneser-Ney": [2.05264, 3.0]}, ["val", "val, new words"])
    assert [re.split("  +", line) for line in lines] == [
        ["loss", "val", "val, new words"],
        ["network", "2.0000", "4.85e+08"],
        ["Kneser-Ney", "2.0526", "3.0000"],
    ]
    assert len({len(line) for line in lines}) == 1
