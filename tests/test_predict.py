import io
import math
import re
from pathlib import Path

import notebook
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl import MLP, NamesDataModule, NGram, sampling
from makemore_pl.predict import NamesWriter, Request, mix_with_counting
from makemore_pl.words import _stdin


def trainer(*callbacks):
    off = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **off)


@pytest.fixture
def predict(capsys):
    """Gives what `predict` writes: (stdout, stderr)."""

    def run(model=None, **options):
        request = Request(**options)
        capsys.readouterr()
        trainer(NamesWriter(request)).predict(model or MLP(), request, return_predictions=False)
        return capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)


def test_each_chunk_of_names_is_written_before_the_next_is_drawn(predict, capsys, monkeypatch):
    written = []

    class Spy(sampling.Draw):
        def draw(self, number, B):
            written.append(capsys.readouterr().out)
            return super().draw(number, B)

    names = MLP().sample(150)
    monkeypatch.setattr("makemore_pl.model.Draw", Spy)
    written.append(predict(num_names=150).out)
    assert [len(part.split()) for part in written] == [0, 64, 64, 22]
    assert "".join(written) == "".join(f"{name}\n" for name in names)


def test_a_line_says_how_to_repeat_the_names(predict):
    assert predict().err == "seed 2147483647; --sample.seed random draws other names\n"
    other, err = predict(seed="random")
    seed = int(re.match(r"seed (\d+); ", err)[1])
    assert predict(seed=seed).out == other != predict().out


@pytest.mark.parametrize("given", ["mine.txt", "-"])
def test_words_of_a_file_or_stdin_are_scored_in_their_order(given, predict, names, folder, monkeypatch):
    monkeypatch.setattr("makemore_pl.predict.SCORED", 2)
    words = ["emma", "xqzt", "Ava", "peña", "a", "niño"]
    Path("mine.txt").write_text("\n".join(words), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path("mine.txt").read_bytes())))
    _stdin.cache_clear()  # another process would read its own
    model = MLP(init="lecture")
    out, err = predict(model, score=given)
    for word, line in zip(words, out.splitlines(), strict=True):
        score, perplexity, name = line.split("\t")
        assert name == word
        if "ñ" in word:
            assert (score, perplexity) == ("-inf", "inf")
            continue
        X, Y = notebook.build_dataset([word.lower()], notebook.stoi(names))
        mean = notebook.negative_log_likelihood(dict(model.named_parameters()), X, Y).item()
        assert float(score) == pytest.approx(-mean * len(Y), abs=1e-3)
        assert float(perplexity) == pytest.approx(math.exp(mean), rel=1e-3)
    assert err.endswith("-inf for 2 of 6 words: the network does not know, say, 'ñ'\n")
    assert "seed" not in err


@pytest.mark.parametrize("options", [{"prompt": "a"}, {"unique": True}, {"novel": True}, {"pattern": "a.*"}])
def test_options_of_new_names_are_refused_where_words_are_scored(options):
    with pytest.raises(ValueError, match="score cannot be combined with prompt, unique, novel or pattern"):
        Request(score="mine.txt", **options)


@pytest.mark.parametrize("val_fraction", [0.1, 0])
def test_names_may_come_from_the_mixture_with_counting(val_fraction, names, capsys):
    """Against the notebook's formulas: probabilities of the network and of counting, mixed as the line says."""
    data = NamesDataModule(val_fraction=val_fraction)
    model = MLP(init="lecture")
    mix_with_counting(model, data)
    network = int(re.fullmatch(r"using the mixture \((\d+) % network\)\n", capsys.readouterr().err)[1])
    counting = NGram.from_words(data.splits["train"], model.vocabulary, 3)
    drawn = model.sample(30)
    assert drawn != MLP(init="lecture").sample(30)
    for name, score in zip(drawn, model.score(drawn), strict=True):
        X, Y = notebook.build_dataset([name], notebook.stoi(names))
        p = notebook.probabilities(dict(model.named_parameters()), X)
        p = network / 100 * p + (1 - network / 100) * counting(X).exp()
        expected = p[torch.arange(len(Y)), Y].log().sum().item()
        assert score == pytest.approx(expected, abs=0.02 * len(Y))  # the shares are printed with two digits


def test_a_loader_of_words_is_scored_and_one_of_contexts_gives_logits():
    model = MLP(init="lecture")
    words = ["emma", "ava", "ñ"]
    first, second = trainer().predict(model, DataLoader(words, batch_size=2))
    assert first + second == model.score(words)
    X = torch.randint(27, (5, 3), generator=torch.Generator().manual_seed(1))
    for loader in DataLoader(X, batch_size=2), DataLoader(TensorDataset(X, X[:, 0]), batch_size=2):
        logits = trainer().predict(model, loader)
        assert [len(each) for each in logits] == [2, 2, 1]
        torch.testing.assert_close(torch.cat(logits), model(X).detach())
    first, second = trainer().predict(model, Request(num_names=70))
    assert (first + second, len(second)) == (model.sample(70), 6)


@pytest.mark.parametrize(
    ("loader", "given"),
    [
        (DataLoader(torch.zeros(4, 3), batch_size=2), r"\(2, 3\) torch.float32"),
        (DataLoader(torch.zeros(4, 5, dtype=torch.int64), batch_size=2), r"\(2, 5\) torch.int64"),
        (["emma", "ava"], "str"),
    ],
)
def test_any_other_loader_gets_one_line(loader, given):
    expected = r"pass a Sampler, words, or contexts \(B, 3\) int64$"
    with pytest.raises(ValueError, match=f"^predict: the loader gives {given}; {expected}"):
        trainer().predict(MLP(), loader)
