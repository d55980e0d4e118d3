"""The benchmarks run, on little data: what they measure is no test's business."""

import json
import string
from importlib import import_module
from pathlib import Path

import pytest
import torch

from makemore_pl import MLP, NamesDataModule
from makemore_pl.vocabulary import Vocabulary

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield import_module


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_each_finds_what_it_imports(benchmark, name):
    assert benchmark(name).__doc__


def test_a_row_is_the_ratio_of_alternate_rounds(benchmark, capsys):
    theirs, ours = iter([2.0, 9.0, 4.0]), iter([1.0, 3.0, 1.0])
    row = benchmark("run").measured("work", lambda: next(theirs), lambda: next(ours))
    assert (row["ratio"], row["lowest"], row["highest"], row["peer_s"], row["ours_s"]) == (3, 2, 4, 4, 1)
    assert "| work | 4 s | 1 s | **3** | 2 to 4 |" in capsys.readouterr().out


def test_a_fit_and_its_peers_are_timed(benchmark, tmp_path):
    run, peers = benchmark("run"), benchmark("peers")
    cli = run.fit(tmp_path, "--trainer.max_steps", 2)
    assert cli.model.seconds > 0
    assert isinstance(run.best_model(cli), MLP)
    assert peers.time_usual_lightning(2, tmp_path) > 0
    assert run.bare_loop(steps=2, validate_every=1) > 0
    assert sorted(run.read_and_count(ROOT / "names.txt")) == ["count_s", "read_s", "split_s"]


def test_the_peers_have_the_loss_and_the_windows_of_the_project(benchmark):
    peers, data, model = benchmark("peers"), NamesDataModule(), MLP(init="lecture")
    data.setup("validate")
    X, Y = peers.windows()[1]
    assert len(Y) == int(data.count("val").n.sum()) == 22_939
    with torch.no_grad():
        torch.testing.assert_close(peers.loss(peers.parameters(), X, Y), model.loss(model(X), Y), rtol=1e-5, atol=1e-5)


def test_the_cost_of_an_update_is_of_the_counted_contexts(benchmark):
    found = benchmark("cost").update_seconds(["emma", "eva"], Vocabulary(string.ascii_lowercase), 1)
    assert found["contexts"] == 5  # ., e, m, a, v
    assert found["update_s"] > 0


@torch.no_grad()
def test_an_average_has_the_mean_of_the_logits(benchmark):
    models = [MLP("abc", 2, embedding_dim=3, hidden_size=5, seed=1), MLP("abc", 2, embedding_dim=4, seed=2)]
    X = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    logits = benchmark("records").average(models)(X)
    torch.testing.assert_close(logits, (models[0](X) + models[1](X)) / 2)


def test_a_teacher_is_half_of_what_smooths_the_targets(benchmark):
    Taught = benchmark("records").Taught
    plain, taught = (kind(num_words=200, smoothing=1.0) for kind in (NamesDataModule, Taught))
    taught.teacher = model = MLP(plain.vocabulary.characters)
    for data in (plain, taught):
        data.setup("fit")
    (X, counting), (_, targets) = plain.tensors["train"], taught.tensors["train"]
    windows = counting.sum(1, keepdim=True)
    expected = (counting + windows * torch.softmax(model(X).detach(), dim=1)) / 2
    torch.testing.assert_close(targets, expected)


def test_a_row_of_the_records_has_mean_and_half_the_range(benchmark, capsys):
    losses = {"train": [2.0, 2.1], "val": [2.2]}
    row = {"recipe": "wide", "parameters": "11,897", "block": 3, "floor": 1.8688, "losses": losses, "seconds": 12.34}
    benchmark("records").printed(row)
    assert capsys.readouterr().out == "| wide | 11,897 | 3 | 1.8688 | 2.0500 ± 0.0500 | 2.2000 | 12.3 s |\n"


def test_roman_numerals_have_the_value_of_their_digits(benchmark):
    roman = benchmark("lists").roman
    assert [roman(number) for number in (4, 9, 40, 888, 999)] == ["IV", "IX", "XL", "DCCCLXXXVIII", "CMXCIX"]


def test_a_list_is_measured(benchmark, tmp_path):
    lists = benchmark("lists")
    few = ["--trainer.max_steps", 30, "--pictures", "false"]
    row = lists.measure("Roman | numerals", map(lists.roman, range(1, 1000)), tmp_path, *few)
    assert (row["words"], row["characters"]) == (999, 7)
    assert 0 < row["mixed"] < row["counting"] < 1.9459  # a uniform guess among 7 digits: log 7
    assert len(row["names"]) == 5
    assert not {lists.roman(number) for number in range(1, 1000)} & set(row["names"])
    assert lists.table_line(row).startswith("| Roman | numerals | 999 | 7 | smoothing 0.5, units 800, lr 0.015, decay ")


def test_what_was_measured_is_what_is_listed(benchmark):
    rows = json.loads((ROOT / "benchmarks" / "lists.json").read_text(encoding="utf-8"))["rows"]
    assert [row["list"] for row in rows] == list(benchmark("lists").LISTS)
