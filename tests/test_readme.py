import json
import re
import shlex
import shutil

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {
        command.strip()
        for command in re.findall(r"(?<!/)python -m makemore_pl ((?:fit|predict|validate|test)[^#|`\n]*)", README)
    }
)


def test_commands_are_found():
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_is_understood(line, default_fit, call, monkeypatch, names, tmp_path):
    folder = tmp_path
    shutil.copytree(default_fit[0] / "lightning_logs", folder / "lightning_logs")
    monkeypatch.chdir(folder)
    (folder / "my_words.txt").write_text("\n".join(names[:100]), encoding="utf-8")
    (folder / "configs").mkdir(exist_ok=True)
    for recipe in (ROOT / "configs").iterdir():
        (folder / "configs" / recipe.name).write_bytes(recipe.read_bytes())
    arguments = shlex.split(line)
    # What takes long or needs a GPU is only parsed.
    long = arguments[0] == "fit" and not {"--help", "last", "my_words.txt"} & set(arguments)
    status, out, err = call(*arguments, *(["--print_config"] if long else []))
    assert status == 0, err
    assert out


def test_the_python_of_the_readme_runs(default_fit, monkeypatch, capsys):
    monkeypatch.chdir(default_fit[0])
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    names = eval(capsys.readouterr().out)
    assert len(names) == 10
    assert all(name.startswith("mar") for name in names)


def test_the_names_and_figures_of_the_readme_are_those_of_the_default_recipe(default_fit):
    _, fit = default_fit
    (transcript,) = re.findall(r"```text\n(checkpoint.*?)```", README, re.DOTALL)
    said, names = transcript.split("tensorboard --logdir lightning_logs\n")
    loss = re.compile(r"val/loss ([\d.]+)")
    (promised,), (found,) = loss.findall(said), loss.findall(fit.stderr)
    assert float(found) == pytest.approx(float(promised), abs=0.003)  # processors round differently
    assert fit.stderr.endswith(said.replace(promised, found) + "tensorboard --logdir lightning_logs\n")
    assert re.fullmatch(r"([a-z]+\n)+\.\.\.\n", names)


def test_the_tree_lists_every_room():
    listed = set(re.findall(r"^  (\w+\.py) ", README, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "makemore_pl").glob("*.py")} - {"__init__.py", "__main__.py"}


def test_the_table_of_speeds_is_the_last_one_measured():
    rows = json.loads((ROOT / "benchmarks/results.json").read_text())["rows"]
    assert len(rows) >= 8
    for row in rows:
        assert f"| {row['work']} |" in README
        assert f"**{row['ratio']:.3g}** | {row['lowest']:.3g} to {row['highest']:.3g} |" in README
