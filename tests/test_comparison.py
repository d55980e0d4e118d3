import math
import re
from collections import Counter

import notebook
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import MLP, NamesDataModule, NGram, windows
from makemore_pl.comparison import Comparison, Mixture, best_weight, entropy, measure
from makemore_pl.windows import Counts, build_windows, count_windows, count_words


def test_figures_are_those_of_the_windows_one_by_one(names, monkeypatch):
    monkeypatch.setattr(windows, "CELLS_AT_ONCE", 27 * 100)
    model = MLP(init="lecture")
    sets = [names[:300], names[100:200]]
    counted = [count_words(words, model.vocabulary, 3) for words in sets]
    for words, score in zip(sets, measure(model, *counted), strict=True):
        X, Y = notebook.build_dataset(words, notebook.stoi(names))
        p = notebook.probabilities(dict(model.named_parameters()), X)
        rank = (p > p[torch.arange(len(Y)), Y][:, None]).sum(1)
        assert score.loss == pytest.approx(-p[torch.arange(len(Y)), Y].log().mean().item(), abs=1e-5)
        assert score.top1 == pytest.approx((rank == 0).double().mean().item(), abs=1e-9)
        assert score.top5 == pytest.approx((rank < 5).double().mean().item(), abs=1e-9)
        assert score.perplexity == pytest.approx(math.exp(score.loss))
        assert score.bits_per_character == pytest.approx(score.loss / math.log(2))


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


def test_nobody_is_below_the_floor(names):
    X, Y = build_windows(names[:500], MLP().vocabulary, 3)
    counted = count_windows(X, Y, 27)
    seen = F.one_hot(Y, 27)
    conditional = torch.stack([seen[(x == X).all(1)].double().mean(0) for x in counted.contexts])
    best = {tuple(x): p.log() for x, p in zip(counted.contexts.tolist(), conditional, strict=True)}
    (score,) = measure(lambda context: torch.stack([best[tuple(x)] for x in context.tolist()]), counted)
    assert score.loss == pytest.approx(entropy(counted), abs=1e-12)


def test_words_that_do_not_stand_in_train(names):
    train, val, test = notebook.split(names)
    data, known = NamesDataModule(), set(train)
    assert data.unseen("val") == [word for word in val if word not in known]
    assert data.unseen("test") == [word for word in test if word not in known]
    assert len(data.unseen("val")) == 2809  # 12 % stand in train
    assert NamesDataModule(unique=True).unseen("val") is None


def parse(table):
    """The printed table: (set, predictor) -> its figures."""
    figures = {}
    for block in table.strip().split("\n\n"):
        head, *rows = block.split("\n")
        name = re.split("  +", head)[0]
        for row in rows:
            who, loss, perplexity, bits, top1, top5 = re.split("  +", row)
            figures[name, who] = float(loss), float(perplexity), float(bits), top1, top5
    return figures


@pytest.mark.parametrize(("stage", "split"), [("validate --split train", 0), ("validate", 1), ("test", 2)])
def test_the_printed_table_holds_the_notebooks_figures(stage, split, default_fit, call, monkeypatch, names):
    folder, fit = default_fit
    monkeypatch.chdir(folder)
    status, out, err = call(*stage.split())
    assert status == 0, err
    assert max(map(len, out.split("\n"))) <= 80
    figures = parse(out)
    parts = notebook.split(names)
    parameters = torch.load(folder / "lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    train, sets = set(parts[0]), {}
    for (name, _), _ in figures.items():
        sets[name] = [word for word in parts[split] if "not in train" not in name or word not in train]
    assert len(sets) == (2 if split else 1)
    counting = NGram.from_words(parts[0], MLP().vocabulary, 3)
    (mixed,) = {who for _, who in figures if who.startswith("mixed")}
    weight = float(re.search(r"0\.\d+", mixed)[0])
    # Whatever is tested, the weight is the one of 0.00, 0.01, ... that is best on the validation words.
    X, Y = notebook.build_dataset(parts[1], notebook.stoi(names))
    rows = torch.arange(len(Y)), Y
    p, q = notebook.probabilities(parameters, X)[rows], counting(X).exp()[rows]
    losses = [-(w / 100 * p + (1 - w / 100) * q).log().mean().item() for w in range(101)]
    assert 100 * weight == pytest.approx(losses.index(min(losses)), abs=1)
    for name, words in sets.items():
        X, Y = notebook.build_dataset(words, notebook.stoi(names))
        network = notebook.probabilities(parameters, X)
        each = {"network": network, "Kneser-Ney": counting(X).exp(), "uniform": torch.full((len(X), 27), 1 / 27)}
        each[mixed] = weight * each["network"] + (1 - weight) * each["Kneser-Ney"]
        for who, p in each.items():
            expected = -p[torch.arange(len(Y)), Y].log().mean().item()
            loss, perplexity, bits, top1, top5 = figures[name, who]
            assert loss == pytest.approx(expected, abs=2e-4)  # the weight of the mixture is printed with two digits
            assert perplexity == pytest.approx(math.exp(expected), abs=0.006)
            assert bits == pytest.approx(expected / math.log(2), abs=6e-4)
            if who != "uniform":
                likeliest = p.topk(5).indices
                hits = likeliest == Y[:, None]
                right = hits[:, 0].double().mean().item(), hits.any(1).double().mean().item()
                # The weight is printed with two digits: a few near ties may go the other way.
                assert [float(top1[:-1]), float(top5[:-1])] == pytest.approx([100 * share for share in right], abs=0.11)
    ending = dict(re.findall(r"^(network|Kneser-Ney|mixed.*?)  +([\d. ]+)$", fit.stderr, re.MULTILINE))
    for who in ("network", "Kneser-Ney", mixed) if split < 2 else ():
        columns = ending[who].split()[:1] if split == 0 else ending[who].split()[1:]
        assert columns == [f"{figures[name, who][0]:.4f}" for name in sets]


def test_without_words_held_out_there_is_no_mixture(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("emma\nolivia\n")
    alone = ["--data.path", "words.txt", "--data.train_fraction", 1, "--data.val_fraction", 0]
    status, _, err = call("fit", *alone, "--trainer.max_steps", 2, "--pictures", "false")
    assert status == 0, err
    assert "Kneser-Ney" not in err
    status, out, err = call("validate")
    assert status == 0, err
    assert {who for _, who in parse(out)} == {"network", "Kneser-Ney", "uniform"}
    assert {name for name, _ in parse(out)} == {"val, all words"}


def test_every_word_of_a_split_that_keeps_them_together_is_unseen(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call("fit", "--data.unique", "--trainer.max_steps", 2, "--pictures", "false")
    assert status == 0, err
    assert "Kneser-Ney" in err
    assert "not in train" not in err


def test_a_comparison_may_be_had_from_python():
    data = NamesDataModule(num_words=300)
    counts = data.count("train", "val")
    scores = Comparison(MLP(data.vocabulary.characters), counts["train"], counts["val"]).score(counts["val"])
    assert [who.split(",")[0] for who in scores] == ["network", "Kneser-Ney", "mixed", "uniform"]


def test_losses_are_those_of_the_scores(names):
    data = NamesDataModule(num_words=900)
    counts = data.count("train", "val", "test")
    compared = Comparison(MLP(), counts["train"], counts["val"])
    scores = compared.score(*counts.values())
    for who, losses in compared.losses(*counts.values()).items():
        assert losses == pytest.approx([score.loss for score in scores[who]], rel=1e-12)
