"""What README and docs say is so: commands and code run, figures are those of a run, links lead to files."""

import io
import re
import shlex
import shutil
import subprocess
import sys

import notebook
import numpy as np
import pytest
import torch
from conftest import ROOT

from makemore_pl import MLP

DOCUMENTS = {
    path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
README = DOCUMENTS["README.md"]
COMMAND = r"(?<!/)python -m makemore_pl ((?:fit|predict|validate|test|lr_find|export)\b[^#|`\n;>]*)"
FOUND = {line.strip(" \\") for text in DOCUMENTS.values() for line in re.findall(COMMAND, text)}
COMMANDS = sorted(line for line in FOUND if "$" not in line)  # without what a shell fills in
CHAPTERS = dict(re.findall(rf"^\| ([^|]+) \| `{COMMAND}` \|", README, re.MULTILINE))
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in DOCUMENTS.items()}

# What another processor may make of a loss after 500 steps: of eight fits whose first weights differed by 1e-7, as
# processors' sums do, the final losses had a standard deviation of 0.0008. This is five of them.
ROUNDING = 0.004


@pytest.fixture
def reader(default_fit, folder, names, monkeypatch):
    """A reader's folder after a first fit, with lists of the names that the documents take for examples."""
    shutil.copytree(default_fit[0] / "lightning_logs", folder / "lightning_logs")
    for name in {"my_words.txt", *re.findall(r"--data\.path (\w+\.txt)", "".join(DOCUMENTS.values()))}:
        (folder / name).write_text("\n".join(names[:100]), encoding="utf-8")
    (folder / "towns.csv").write_text("id,name\n" + "".join(f"1,{name}\n" for name in names[:100]))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"annalise\n")))
    monkeypatch.setattr("sys.argv", ["python"])
    return folder


def test_commands_chapters_and_code_are_found():
    assert len(COMMANDS) > 15
    assert len(CHAPTERS) >= 6
    assert len(BLOCKS["README.md"] + BLOCKS["python.md"]) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line, reader, call):
    """What trains is only parsed: the chapters are run below, resuming and several processes by tests of their own."""
    arguments = shlex.split(line)
    trains = arguments[0] in ("fit", "lr_find") and "--help" not in arguments
    status, out, err = call(*arguments, *["--print_config"] * trains)
    assert status == 0, err
    assert out or arguments[0] == "export"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_runs(chapter, reader, call, default_fit):
    arguments = shlex.split(CHAPTERS[chapter])
    long = {"split", "hidden", "lecture"} & set(arguments)
    if arguments[0] == "fit" and long:
        arguments += ["--trainer.max_epochs", "1", "--data.steps_per_epoch", "2000"]
    status, _, err = call(*arguments) if arguments != ["fit"] else (0, "", default_fit[1].stderr)
    assert status == 0, err
    figure = "" if arguments[0] == "lr_find" else "val "
    promised = re.search(rf"{re.escape(CHAPTERS[chapter])}` \| [^|]*?{figure}(\d\.\d+)", README)
    if arguments[0] == "lr_find":
        low, high = map(float, re.search(r"good from ([\d.]+) to ([\d.]+);", err).groups())
        assert low < float(promised[1]) < high
    elif arguments[0] == "fit" and promised and not long and "val/loss" in err:
        (found,) = re.findall(r"\(val/loss ([\d.]+)\)", err)
        assert float(found) == pytest.approx(float(promised[1]), abs=ROUNDING)


@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if blocks])
def test_the_code_runs(name, reader):
    """The blocks of a document in their order, as in a notebook."""
    scope = {"__name__": "__main__"}
    for block in BLOCKS[name]:
        exec(compile(block, name, "exec"), scope)


def test_onnx_and_safetensors_hold_the_network(reader):
    model = MLP.load_from_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt")
    onnx, safetensors = (
        next(block for block in BLOCKS["python.md"] if f'"model.{ending}"' in block)
        for ending in ("onnx", "safetensors")
    )
    exec(onnx, scope := {})
    X = torch.randint(27, (7, 3), generator=torch.Generator().manual_seed(1))
    (logits,) = scope["session"].run(["logits"], {"X": X.numpy()})
    p = torch.softmax(torch.from_numpy(logits), 1)
    np.testing.assert_allclose(p, notebook.probabilities(model.state_dict(), X), rtol=0, atol=1e-5)
    exec(safetensors, scope := {})
    assert scope["again"].sample(5) == model.sample(5)


def test_the_losses_in_the_readme_are_those_of_the_default_recipe(default_fit):
    rows = r"^(network|Kneser-Ney|mixture).*?((?: +\d\.\d{4})+)$"
    ours, theirs = (dict(re.findall(rows, text, re.MULTILINE)) for text in (default_fit[1].stderr, README))
    assert theirs
    for name, losses in theirs.items():
        found, promised = ([float(loss) for loss in row.split()] for row in (ours[name], losses))
        assert found == pytest.approx(promised, abs=ROUNDING)


def test_the_lists_are_made_as_the_readme_says(tmp_path):
    for code, name in re.findall(r'python -c "(import .*)" > (\w+)\.txt', README):
        if "jieba" not in code:  # it is not installed
            options = {"cwd": tmp_path, "text": True, "capture_output": True, "check": True}
            words = subprocess.run([sys.executable, "-c", code], **options).stdout.splitlines()
            assert len(words) > 100, name


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_pictures_are_small(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    links = re.findall(r"(!?)\[[^]]*\]\((?!https?://)([^)#]+)[^)]*\)", DOCUMENTS[name])
    assert [link for _, link in links if not (folder / link).is_file()] == []
    assert all((folder / link).stat().st_size < 100_000 for picture, link in links if picture)


def test_the_readme_is_short_and_leads_to_every_document_and_code_md_to_every_file():
    assert README.count("\n") <= 130
    linked = set(re.findall(r"\]\(docs/(\w+\.md)\)", README))
    assert DOCUMENTS.keys() - {"README.md"} <= linked
    package = {path.name for path in (ROOT / "makemore_pl").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {name for name in package if name not in DOCUMENTS["code.md"]} == set()
