import re
import shlex

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
def test_every_command_of_the_readme_is_understood(line, default_fit, call, monkeypatch, names):
    folder, _ = default_fit
    monkeypatch.chdir(folder)
    (folder / "my_words.txt").write_text("\n".join(names[:100]), encoding="utf-8")
    (folder / "configs").mkdir(exist_ok=True)
    for recipe in (ROOT / "configs").iterdir():
        (folder / "configs" / recipe.name).write_bytes(recipe.read_bytes())
    arguments = shlex.split(line)
    status, out, err = call(*arguments, *(["--print_config"] if arguments[0] == "fit" and "--help" not in line else []))
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
    (transcript,) = re.findall(r"```text\n(faverlyn.*?)```", README, re.DOTALL)
    names, lines = transcript.split("...\n")
    assert fit.stdout.startswith(names)
    assert fit.stderr.endswith(lines)


def test_the_tree_lists_every_room():
    listed = set(re.findall(r"^  (\w+\.py) ", README, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "makemore_pl").glob("*.py")} - {"__init__.py", "__main__.py"}
