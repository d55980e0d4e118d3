import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "makemore_pl"
WINGS = {"commands", "pictures", "durable"}
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}

# Attributes of Lightning, torch and jsonargparse that are not public. Each is held by the test that is named.
PRIVATE = {
    ("commands/cli", "_parse_ckpt_path"): "test_loading.py: a class that a checkpoint names would be imported",
    ("commands/parser", "_typehint"): "test_cli.py: --sample.unique without a value",
    ("checkpoint", "_C"): "test_loading.py: two pickles in one archive, of which torch reads the other",
}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def ours(path):
    """The files of the package that a file imports."""
    modules = (name.removeprefix("makemore_pl.").replace(".", "/") for name in imports(path))
    return {module for module in modules if module in FILES}


CORE = [name for name in FILES if "/" not in name and not name.startswith("__")]


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_no_wing(name):
    assert not WINGS & {module.split("/")[0] for module in ours(FILES[name])}


def test_model_and_data_never_import_each_other():
    assert "datamodule" not in ours(FILES["model"])
    assert "model" not in ours(FILES["datamodule"])


def test_only_the_commands_import_what_is_durable():
    for name, path in FILES.items():
        if name.split("/")[0] not in ("commands", "durable"):
            assert not {module for module in ours(path) if module.startswith("durable/")}, name


def test_nothing_imports_the_commands():
    for name, path in FILES.items():
        if name.split("/")[0] != "commands" and name != "__main__":
            assert not {module for module in ours(path) if module.startswith("commands/")}, name


PLAIN = ["gradient", "memory", "ngram", "pieces", "sampling", "split", "terminal", "vocabulary", "windows", "wordlist"]


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_plain_knows_no_lightning(name):
    assert not any(module.startswith("lightning") for module in imports(FILES[name]))


def test_what_is_private_elsewhere_is_left_alone():
    """An attribute with an underscore is one of self that the file itself defines, or a known exception."""
    found = set()
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and re.match(r"_[A-Za-z]", node.attr) and node.attr != "_exit":
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if not (own and re.search(rf"def {node.attr}\b|self\.{node.attr}\b *[:=]", text)):
                    found.add((name, node.attr))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr"):
                found |= {(name, value) for a in node.args if re.match("_[a-z]", value := str(getattr(a, "value", "")))}
            if isinstance(node, ast.FunctionDef) and node.name == "_parse_ckpt_path":
                found.add((name, node.name))
    assert found == set(PRIVATE)


def test_a_file_over_300_lines_says_why():
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 300:
            assert "lines" in text.split('"""')[1], name


def test_the_vocabulary_does_not_wait_for_lightning():
    code = "import sys; from makemore_pl import Vocabulary, Sampler; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_gives_what_it_promises():
    import makemore_pl

    for name in makemore_pl.__all__:
        assert getattr(makemore_pl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        makemore_pl.nonsense  # noqa: B018
    assert (PACKAGE / "py.typed").exists()
