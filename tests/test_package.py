"""What is in the package, what it imports and installs: a wheel runs anywhere, and the lecture's files stand alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT
from lightning.pytorch.cli import LightningCLI

import makemore_pl

PACKAGE = ROOT / "makemore_pl"
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
LECTURE = ["words", "vocabulary", "windows", "gradient", "model", "optimization", "batches", "datamodule"]
LECTURE += ["sampling", "ngram", "comparison"]


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("name", LECTURE)
def test_the_lecture_imports_nothing_below_it(name):
    ours = {module.removeprefix("makemore_pl.").replace(".", "/") for module in imports(FILES[name])} & FILES.keys()
    assert ours <= set(LECTURE)


def test_no_file_is_longer_than_300_lines():
    assert {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > 300} == {}


def test_what_is_private_elsewhere_is_left_alone():
    """Of attributes with an underscore the package uses its own, with two exceptions; os._exit is documented."""
    nodes = [node for path in FILES.values() for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
    methods = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    own = methods | {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    overridden = {name for name in methods if re.match("_[a-z]", name) and hasattr(LightningCLI, name)}
    assert {node.attr for node in attributes} - own | overridden == {"_exit", "_parse_ckpt_path"}


def test_the_package_gives_what_it_promises():
    for name in makemore_pl.__all__:
        assert getattr(makemore_pl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        makemore_pl.nonsense  # noqa: B018
    code = "import sys; from makemore_pl import Vocabulary, Sampler; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 0


# The wheel.


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
    def content(folder):
        paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(folder): path.read_bytes() for path in paths}

    found = content(site / "makemore_pl")
    recipes = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / "configs").iterdir()}
    shipped = recipes | {path.relative_to(ROOT): path.read_bytes() for path in [ROOT / "names.txt"]}
    assert found == content(PACKAGE) | shipped


def test_its_metadata_declares_what_is_imported_and_links_to_no_file(site):
    (metadata,) = (path.read_text(encoding="utf-8") for path in site.glob("*.dist-info/METADATA"))
    declared = {name.lower() for name in re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.MULTILINE)}
    imported = {module.split(".")[0] for path in FILES.values() for module in imports(path)}
    imported -= set(sys.stdlib_module_names) | {"makemore_pl"}
    assert {"torch", "jsonargparse"} <= {"pyyaml" if name == "yaml" else name for name in imported} <= declared
    assert "# makemore_pl" in metadata
    assert re.findall(r"\]\((?!https?://)[^)]*\)", metadata) == []


def test_the_wheel_trains_and_samples_in_an_empty_folder(site, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "makemore_pl", *arguments]
        options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(site)}, "timeout": 300}
        done = subprocess.run(command, text=True, capture_output=True, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = run("fit", "--trainer.max_steps", "3", "--config", "notebook")
    assert run("predict", "--sample.num_names", "5").split() == names.split()[:5]


# The Makefile.


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_answers_an_older_python_and_installs_what_a_target_needs(tmp_path):
    def make(*arguments):
        return subprocess.run(["make", *arguments], cwd=tmp_path, text=True, capture_output=True, timeout=60)

    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    before = sorted(tmp_path.iterdir())
    fit, test = (make("--dry-run", target, f"PYTHON={sys.executable}").stdout for target in ("fit", "test"))
    assert "--editable ." in fit
    assert "[dev]" not in fit
    assert "--editable '.[dev]'" in test
    old = tmp_path / "old-python"
    code = "import sys; sys.version_info = (3, 10, 0, 'final', 0); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    old.chmod(0o755)
    done = make("fit", f"PYTHON={old}")
    assert done.returncode == 2
    assert f"{old} is 3.10 and makemore_pl needs Python 3.11 or newer" in done.stderr
    assert sorted(tmp_path.iterdir()) == sorted([*before, old])
