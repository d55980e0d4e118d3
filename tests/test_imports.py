import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "makemore_pl"

MAY_IMPORT = {
    "__init__": {"datamodule", "model", "ngram", "sampling", "vocabulary"},
    "__main__": {"cli"},
    "checkpointing": {"loading"},
    "loading": {"memory"},
    "shipped": set(),
    "threads": set(),
    "memory": set(),
    "interruption": {"checkpointing", "watchdog"},
    "figures": {"vocabulary"},
    "ngram": {"vocabulary", "windows"},
    "comparison": {"ngram", "sampling", "windows"},
    "board": {"comparison", "datamodule", "figures", "model", "ngram", "sampling"},
    "vocabulary": set(),
    "wordlist": {"memory"},
    "watchdog": set(),
    "windows": {"memory", "vocabulary"},
    "gradient": set(),
    "batches": set(),
    "sampling": {"vocabulary"},
    "scoring": {"sampling", "vocabulary", "windows"},
    "model": {"gradient", "loading", "memory", "sampling", "scoring", "vocabulary"},
    "datamodule": {
        *("batches", "comparison", "loading", "memory", "model", "ngram", "sampling", "shipped", "vocabulary"),
        *("windows", "wordlist"),
    },
    "callbacks": set(),
    "predictions": {"sampling", "vocabulary", "wordlist"},
    "ensemble": {"model"},
    "export": {"checkpointing", "datamodule", "ensemble", "figures", "loading", "model"},
    "lr_find": {"datamodule", "figures", "model", "threads"},
    "parser": {"shipped"},
    "sweep": {"cli", "datamodule", "model", "parser", "threads"},
    "cli": {
        *("board", "callbacks", "checkpointing", "comparison", "datamodule", "export", "interruption", "loading"),
        *("lr_find", "memory", "model", "parser", "predictions", "threads"),
        *("watchdog", "windows"),
    },
}


def test_the_table_lists_every_room():
    assert set(MAY_IMPORT) == {path.stem for path in PACKAGE.glob("*.py")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room):
    tree = ast.parse((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            imported |= {node.module} if node.module != "makemore_pl" else {f"makemore_pl.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    ours = {name.split(".")[1] for name in imported if name.startswith("makemore_pl.")} - {"__version__"}
    assert ours <= MAY_IMPORT[room]
    plain = {"figures", "gradient", "loading", "memory", "sampling", "scoring", "vocabulary", "windows", "wordlist"}
    plain |= {"comparison", "ngram", "shipped"}
    if room in plain:
        assert not any(name.startswith("lightning") for name in imported)


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
