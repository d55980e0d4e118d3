import ast
import os
import re
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=900)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_package_the_names_and_the_recipes(site):
    package = site / "makemore_pl"
    assert (package / "names.txt").read_bytes() == (ROOT / "names.txt").read_bytes()
    for recipe in (ROOT / "configs").iterdir():
        assert (package / "configs" / recipe.name).read_bytes() == recipe.read_bytes()
    assert {path.name for path in package.iterdir()} == {
        path.name for path in (ROOT / "makemore_pl").iterdir() if path.name != "__pycache__"
    } | {"names.txt", "configs"}


def test_what_is_imported_is_declared(site):
    (metadata,) = site.glob("*.dist-info/METADATA")
    declared = {
        re.match(r"[\w.-]+", line).group().lower()
        for line in re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
    }
    names = {"yaml": "pyyaml", "optuna_integration": "optuna-integration"}
    imported = set()
    for path in (ROOT / "makemore_pl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
    others = imported - set(sys.stdlib_module_names) - {"makemore_pl"}
    assert "yaml" in others
    assert {names.get(name, name) for name in others} <= declared


def test_the_page_of_a_package_index_has_no_link_to_a_file(site):
    (metadata,) = site.glob("*.dist-info/METADATA")
    page = metadata.read_text(encoding="utf-8")
    assert "# makemore_pl" in page
    assert re.findall(r"\]\((?!https?://)[^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert re.findall(r"\]\((?!https?://)[^)]*\)", page) == []
    assert "\nThe map of letters: a, o, e and i in one place" in page


def test_the_wheel_trains_and_samples_in_an_empty_folder(site, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "makemore_pl", *arguments]
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=900)

    fit = run("fit", "--trainer.max_steps", "3", "--config", "notebook")
    assert fit.returncode == 0, fit.stderr
    predict = run("predict", "--sample.num_names", "5")
    assert predict.returncode == 0, predict.stderr
    assert predict.stdout == "".join(line + "\n" for line in fit.stdout.split("\n")[:5])
    where = "from makemore_pl.wordlist import shipped; print(shipped('names.txt'))"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        text=True,
        capture_output=True,
    )
    assert found.stdout.strip() == str(site / "makemore_pl" / "names.txt")
