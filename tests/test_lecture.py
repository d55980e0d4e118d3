"""docs/lecture.ipynb runs, prints the figures of the notebook's formulas, and keeps the outputs that it prints."""

import copy
import html
import math
import re
import runpy

import notebook
import pytest
import torch
from conftest import ROOT

for package in ("nbformat", "nbclient", "ipykernel"):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'makemore_pl[dev]'")

NUMBER = re.compile(r"-?\b\d[\d,]*(?:\.\d+)?(?![\w.])")


def tagged(cell, tag):
    """`chance`: its outputs are names, or hang on the rounding of a processor. `exercise`: it is left to the reader."""
    return tag in cell.metadata.get("tags", [])


def code(of):
    return [cell for cell in of.cells if cell.cell_type == "code"]


def printed(cell):
    """All text that a cell printed and its value, without that of pictures."""
    texts = [output.get("text") or output.get("data", {}) for output in cell.outputs]
    texts = [text if isinstance(text, str) else text.get("text/plain", "") for text in texts]
    return "\n".join(text for text in texts if not re.fullmatch(r"<(Figure|IPython).*>", text))


def bundles(cell):
    """What a cell displays: each output that is no stream, by type."""
    return [output.data for output in cell.outputs if "data" in output]


def kinds(cell):
    """The types of all outputs of a cell: streams, values, pictures."""
    return [(output.output_type, output.get("name"), sorted(output.get("data", []))) for output in cell.outputs]


@pytest.fixture(scope="module")
def kept():
    """The notebook as it is in the repository."""
    import nbformat

    return nbformat.read(ROOT / "docs/lecture.ipynb", as_version=4)


@pytest.fixture(scope="module")
def run(kept, tmp_path_factory):
    """A copy that was executed in an empty folder, with the solutions in the empty cells."""
    executed, folder = copy.deepcopy(kept), tmp_path_factory.mktemp("lecture")
    for cell, after in zip(executed.cells, executed.cells[1:], strict=False):
        if tagged(cell, "exercise"):
            (cell.source,) = re.findall(r"<details>.*?```python\n(.*?)```.*?</details>", after.source, re.DOTALL)
    runpy.run_path(str(ROOT / "docs/lecture.py"))["execute"](executed, folder)
    assert list(folder.iterdir()) == []
    return executed


@pytest.fixture(scope="module")
def text(run):
    return "\n".join(map(printed, code(run)))


def losses(text, pattern):
    """The figures of each line of a pattern."""
    return [[float(figure.replace(",", "")) for figure in line.groups()] for line in re.finditer(pattern, text)]


def test_the_first_half_prints_what_the_formulas_give(text, names, one_thread):
    X, Y = notebook.build_dataset(names[:5], notebook.stoi(names))
    parameters = {name: tensor.double() for name, tensor in notebook.parameters().items()}
    assert f"{sum(map(torch.numel, parameters.values())):,} parameters" in text
    updates = []
    for _ in range(1500):
        for tensor in parameters.values():
            tensor.requires_grad_()
        loss = notebook.negative_log_likelihood(parameters, X, Y)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        pairs = zip(parameters.items(), gradients, strict=True)
        parameters = {name: (tensor - 0.1 * gradient).detach() for (name, tensor), gradient in pairs}
        updates.append(loss.item())
    assert updates[0] == pytest.approx(17.7697, abs=1e-4)
    assert re.search(rf"^{updates[0]:.4f}$", text, re.MULTILINE)  # the handwritten loss
    assert losses(text, r"([\d.]+) -> ([\d.]+)") == 2 * [pytest.approx([updates[0], updates[999]], abs=2e-4)]
    ((once_more,),) = losses(text, r"before the 1,500th update: ([\d.]+)")
    assert once_more == pytest.approx(updates[1499], abs=2e-4)
    ((floor, other),) = losses(text, r"lower loss than ([\d.]+) = 5/32 ln 5 = ([\d.]+)")
    assert (floor, other) == (round(5 / 32 * math.log(5), 4),) * 2
    assert floor < min(updates)


def test_the_windows_are_shown_as_in_the_lecture(text):
    assert "emma\n   ... --> e [0, 0, 0]\n   ..e --> m [0, 0, 5]\n" in text
    assert "   emm --> a [5, 13, 13]\n" in text
    assert text.count(" --> ") == 32 + 1  # and the one context that has several answers


def test_the_second_half_is_where_it_should_be(text, names):
    sizes = [sum(len(word) + 1 for word in words) for words in notebook.split(names)]
    assert "{:,} {:,} {:,} windows".format(*sizes) in text
    trained = losses(text, r"train ([\d.]+), dev ([\d.]+)")
    small, _, again, *wider = trained[:5]
    hidden, large, larger, solution = *wider[1:], *trained[5:]
    assert len(trained) == 8
    for train, dev in trained:
        assert 1.8688 < train < dev + 0.01  # not below the conditional entropy of the training split
    assert 2.4 < small[1] < 2.7
    assert trained[1] == pytest.approx(again, abs=2e-3)  # the same batches by both ways
    assert wider[0][1] < small[1]
    assert 2.3 < hidden[1] < 2.42
    assert large[1] < 2.7
    assert 2.18 < larger[1] < 2.3
    assert 2.08 < solution[1] < 2.17
    ((lr, low, high),) = losses(text, r"take ([\d.]+); good from ([\d.]+) to ([\d.]+)")
    assert 0.02 < low < lr < high < 0.6


def test_the_solutions_hold(run, text):
    assert [len(cell.source) > 100 for cell in code(run) if tagged(cell, "exercise")] == [True] * 3
    ((uniform, begins),) = losses(text, r"([\d.]+), and the network begins at ([\d.]+)")
    assert uniform == round(math.log(27), 4)
    assert begins == pytest.approx(uniform, abs=0.02)
    ((network, counting, share, mixed),) = losses(
        text, r"network ([\d.]+), counting ([\d.]+), mixed with a share of ([\d.]+) ([\d.]+)"
    )
    assert counting == pytest.approx(2.0526, abs=1e-4)  # test_ngram.py has it by hand
    assert mixed < counting < network
    assert 0 < share < 0.5


def test_the_kept_outputs_are_not_stale(kept, run):
    for before, now in zip(code(kept), code(run), strict=True):
        if tagged(before, "exercise"):
            assert before.source == ""
            assert before.outputs == []
            continue
        assert kinds(before) == kinds(now), before.source
        if tagged(before, "chance"):
            continue
        assert NUMBER.sub("#", printed(before)) == NUMBER.sub("#", printed(now)), before.source
        old, new = ([float(x.replace(",", "")) for x in NUMBER.findall(printed(cell))] for cell in (before, now))
        # Another processor rounds otherwise, and some thousand small steps make that visible.
        assert old == pytest.approx(new, abs=0.05), before.source


def test_the_kept_playground_is_the_page_of_today(kept):
    (page,) = (data["text/html"] for cell in code(kept) for data in bundles(cell) if "text/html" in data)
    (shown,) = re.findall(r'<iframe srcdoc="([^"]*)"', page)
    template = (ROOT / "makemore_pl/pictures/playground.html").read_text(encoding="utf-8")
    before, after = template.split("{{model}}")
    assert html.unescape(shown).startswith(before)
    assert html.unescape(shown).endswith(after), "run `make lecture`"


def test_the_kept_outputs_are_small_and_have_no_warning_and_no_folder_of_a_machine(kept):
    path = ROOT / "docs/lecture.ipynb"
    assert path.stat().st_size < 700_000
    assert not re.search(r"[\"' (=](/(home|root|tmp|usr|work|opt|Users)/|[A-Z]:\\)", path.read_text(encoding="utf-8"))
    assert not [cell.source for cell in code(kept) for output in cell.outputs if output.get("name") == "stderr"]
    assert sum("image/png" in data for cell in code(kept) for data in bundles(cell)) >= 6
