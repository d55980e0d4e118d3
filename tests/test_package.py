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
LECTURE = {"words", "vocabulary", "windows", "gradient", "model", "optimization", "batches", "datamodule"}
LECTURE |= {"sampling", "ngram", "comparison"}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def python(*arguments, path=ROOT, **options):
    """Runs a Python that finds the package in a folder; gives what it wrote to stdout."""
    command, environment = [sys.executable, *map(str, arguments)], os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=900, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lecture_imports_nothing_below_it():
    for name in LECTURE:
        ours = {module.removeprefix("makemore_pl.").replace(".", "/") for module in imports(FILES[name])}
        assert ours & FILES.keys() <= LECTURE, name


def test_no_file_is_longer_than_300_lines():
    assert {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > 300} == {}


def test_what_is_private_elsewhere_is_left_alone():
    """Of attributes with an underscore the package uses its own; os._exit is documented."""
    nodes = [node for path in FILES.values() for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
    methods = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    own = methods | {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    overridden = {name for name in methods if re.match("_[a-z]", name) and hasattr(LightningCLI, name)}
    assert {node.attr for node in attributes} - own | overridden == {"_exit"}


def test_the_package_gives_what_it_promises_and_lightning_only_where_it_is_needed():
    for name in makemore_pl.__all__:
        assert getattr(makemore_pl, name).__name__ == name
    python("-c", "import sys; from makemore_pl import Vocabulary, Sampler; sys.exit('lightning' in sys.modules)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_metadata_of_the_wheel_declares_what_is_imported_and_links_to_no_file(site):
    (metadata,) = (path.read_text(encoding="utf-8") for path in site.glob("*.dist-info/METADATA"))
    declared = {name.lower() for name in re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.MULTILINE)}
    imported = {module.split(".")[0] for path in FILES.values() for module in imports(path)}
    imported -= set(sys.stdlib_module_names) | {"makemore_pl"}
    assert {"torch", "jsonargparse"} <= {"pyyaml" if name == "yaml" else name for name in imported} <= declared
    assert "# makemore_pl" in metadata
    assert re.findall(r"\]\((?!https?://)[^)]*\)", metadata) == []


def test_the_wheel_trains_samples_and_exports_in_an_empty_folder(site, tmp_path):
    def run(*arguments):
        return python("-m", "makemore_pl", *arguments, path=site, cwd=tmp_path)

    names = run("fit", "--trainer.max_steps", "3", "--config", "notebook")
    assert run("predict", "--sample.num_names", "5").split() == names.split()[:5]
    run("export")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_answers_an_older_python(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    code = "import sys; sys.version_info = (3, 10, 0, 'final', 0); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "fit", f"PYTHON={old}"], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert f"{old} is 3.10 and makemore_pl needs Python 3.11 or newer" in done.stderr
