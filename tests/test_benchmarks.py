"""The benchmarks run, on little data: what they measure is no test's business."""

import json
import math
from collections import Counter
from importlib import import_module

import notebook
import pytest
import torch
from conftest import ROOT

from makemore_pl import MLP


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield import_module


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_each_finds_what_it_imports(benchmark, name):
    assert benchmark(name).__doc__


def test_a_fit_and_its_peers_are_timed(benchmark, tmp_path):
    run, peers = benchmark("run"), benchmark("peers")
    cli = run.fit(tmp_path, "--trainer.max_steps", 2)
    assert isinstance(run.best_model(cli), MLP)
    peers.time_usual_lightning(2, tmp_path)
    run.bare_loop(steps=2, validate_every=1)


def test_the_floor_of_block_size_3(benchmark, names):
    """By plain counting; others measured 1.8691, perhaps in another order of the names."""
    train, _, _ = notebook.split(names)
    X, Y = (tensor.tolist() for tensor in notebook.build_dataset(train, notebook.stoi(names)))
    contexts, pairs = Counter(map(tuple, X)), Counter(zip(map(tuple, X), Y, strict=True))
    expected = -sum(n * math.log(n / contexts[x]) for (x, _), n in pairs.items()) / len(Y)
    assert expected == pytest.approx(1.8691, abs=0.0005)
    assert benchmark("records").splits(3)[1] == pytest.approx(expected, abs=1e-9)


@torch.no_grad()
def test_an_average_has_the_mean_of_the_logits(benchmark):
    models = [MLP("abc", 2, embedding_dim=3, hidden_size=5, seed=1), MLP("abc", 2, embedding_dim=4, seed=2)]
    X = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    logits = benchmark("records").average(models)(X)
    torch.testing.assert_close(logits, (models[0](X) + models[1](X)) / 2)


def test_a_list_is_measured(benchmark, tmp_path):
    lists = benchmark("lists")
    row = lists.measure("Roman | numerals", map(lists.roman, range(1, 1000)), tmp_path, "--trainer.max_steps", 30)
    assert (row["words"], row["characters"], len(row["names"])) == (999, 7, 5)
    assert 0 < row["mixed"] < row["counting"] < 1.9459  # a uniform guess among 7 digits: log 7
    assert lists.table_line(row).startswith("| Roman | numerals | 999 | 7 | smoothing 0.5, units 800, lr 0.015, decay ")


def test_what_was_measured_is_what_is_listed(benchmark):
    rows = json.loads((ROOT / "benchmarks" / "lists.json").read_text(encoding="utf-8"))["rows"]
    assert [row["list"] for row in rows] == list(benchmark("lists").LISTS)
