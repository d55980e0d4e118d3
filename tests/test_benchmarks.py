"""The benchmarks run, on little data: what they measure is no test's business."""

import importlib
import string

import pytest
from conftest import ROOT

from makemore_pl.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_each_finds_what_it_imports(benchmark, name):
    assert benchmark(name).__doc__


def test_the_cost_of_a_step_is_of_the_counted_contexts(benchmark):
    found = benchmark("cost").step_seconds(["emma", "eva"], Vocabulary(string.ascii_lowercase), 1)
    assert found["contexts"] == 5  # ., e, m, a, v
    assert found["step_s"] > 0
