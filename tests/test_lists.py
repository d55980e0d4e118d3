"""The lists of `make lists`, as far as they need no network, and the table of docs/lists.md."""

import importlib
import json

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def lists():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("lists")


def test_primes_are_as_many_as_is_known(lists):
    primes = lists.primes(30_000)
    assert len(primes) == 3245
    assert primes[:6] == ["2", "3", "5", "7", "11", "13"]
    assert primes[-1] == "29989"


def test_roman_numerals_have_the_value_of_their_digits(lists):
    digits = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    for number in range(1, 1000):
        values = [digits[letter] for letter in lists.roman(number)]
        # A digit before a larger one is subtracted.
        assert number == sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    assert [lists.roman(number) for number in (4, 9, 40, 888, 999)] == ["IV", "IX", "XL", "DCCCLXXXVIII", "CMXCIX"]


def test_a_list_is_measured(lists, tmp_path, monkeypatch):
    run = lists.run
    few = ["--trainer.max_steps", "30", "--pictures", "false"]
    monkeypatch.setattr(lists, "run", lambda folder, first, *rest: run(folder, first, *rest, *few * (first == "fit")))
    row = lists.measure("Roman numerals", map(lists.roman, range(1, 1000)), tmp_path / "list")
    assert (row["words"], row["characters"]) == (999, 7)
    assert row["chosen"]["data.smoothing"] == "0.5"
    assert 0 < row["mixed"] < row["counting"] < 1.9459  # a uniform guess among 7 digits: log 7
    assert 100 < row["megabytes"] < 2000
    assert len(row["names"]) == 5
    assert not {lists.roman(number) for number in range(1, 1000)} & set(row["names"])
    line = lists.table_line(row)
    assert line.startswith("| Roman numerals | 999 | 7 | smoothing 0.5, units 800, lr 0.015, decay ")


def test_what_means_something_in_a_table_is_escaped(lists):
    row = {"list": "signs", "words": 1000, "characters": 2, "chosen": {}, "network": 1.05, "counting": 1.0}
    row |= {"mixed": 0.9, "seconds": 1.4, "megabytes": 500.2, "names": ["a|b", "*c*", "<d>"]}
    line = r"| signs | 1,000 | 2 |  | **1.0500** | 1.0000 | 0.9000 | 1 | 500 | a\|b, \*c\*, \<d\> |"
    assert lists.table_line(row) == line


def test_the_table_of_the_document_is_what_was_measured(lists):
    rows = json.loads((ROOT / "benchmarks" / "lists.json").read_text(encoding="utf-8"))["rows"]
    assert [row["list"] for row in rows] == list(lists.LISTS)
    text = (ROOT / "docs" / "lists.md").read_text(encoding="utf-8").split("## Results")[1]
    table = [[cell.strip(" *") for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("|")][2:]
    assert len(table) == len(rows)
    for cells, row in zip(table, rows, strict=True):
        assert cells[0].strip("| ") == row["list"]
        assert cells[1:3] == [f"{row['words']:,}", f"{row['characters']:,}"]
        assert cells[4:7] == [f"{row[name]:.4f}" for name in ("network", "counting", "mixed")]
