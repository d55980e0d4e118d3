"""What the two commands and the lines of docs/install.md install, and what they leave alone."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path):
    """What make reads, in a folder of its own."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder, *arguments, **environment):
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, text=True, capture_output=True, timeout=300
    )


def pretend(folder, version):
    """A Python of another version, as far as the Makefile can tell; it makes no environments."""
    path = folder / "python-of-another-version"
    code = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0, 'final', 0); exec(sys.argv[1])"
    path.write_text(f'#!/bin/sh\ntest "$1" = -c && exec {sys.executable} -c "{code}" "$2"\nexit 1\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["3.10", "2.7"])
def test_an_older_python_is_answered_before_anything_is_made(version, checkout):
    python = pretend(checkout, version)
    before = sorted(checkout.iterdir())
    done = make(checkout, "fit", f"PYTHON={python}")
    assert done.returncode == 2
    assert f"{python} is {version} and makemore_pl needs Python 3.11 or newer" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(checkout.iterdir()) == before


def test_an_environment_of_another_python_is_made_anew(checkout):
    here = "{}.{}".format(*sys.version_info)
    leftover = checkout / ".venv" / "runtime-3.10"
    leftover.parent.mkdir()
    leftover.touch()
    target = f".venv/python-{here}"
    done = make(checkout, target, f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr
    assert "making it anew" in done.stdout
    assert not leftover.exists()
    assert (checkout / ".venv" / "pyvenv.cfg").exists()
    again = make(checkout, target, f"PYTHON={sys.executable}")
    assert "up to date" in again.stdout


def commands(folder, target):
    """The lines that make would run."""
    return make(folder, "--dry-run", target, f"PYTHON={sys.executable}").stdout.replace("\\\n", " ").splitlines()


def test_fit_installs_the_runtime_alone_and_test_the_rest(checkout):
    fit, test = ("\n".join(commands(checkout, target)) for target in ("fit", "test"))
    assert "--editable ." in fit
    assert "[dev]" not in fit
    assert "--editable '.[dev]'" in test
    assert "--quiet" not in fit.replace("--quiet --dry-run", "")  # pip shows that it is working


def lines_of_pip():
    """The pip lines that install the project, of docs/install.md and of the Makefile."""
    block = re.findall(r"^(?:!|\S*/)?pip install (.*?)(?: +#.*| &&.*)?$", INSTALL, re.MULTILINE)
    lines = [line for line in block if re.search(r"(^| )(-e )?'?\.", line)]
    assert len(lines) >= 2
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = re.findall(r"\$\(PIP_INSTALL\) (--constraint .*)", makefile)
    assert len(made) == 2
    return sorted({*lines, *made})


@pytest.mark.parametrize("line", lines_of_pip())
@pytest.mark.parametrize(("version", "stays"), [("2.10.0", True), ("2.99.0", True), ("2.9.1", False)])
def test_no_line_of_pip_replaces_a_torch_within_the_bounds(version, stays, line, tmp_path):
    # An environment in which all else is installed as constraints.txt has it. Without an index, pip installs nothing,
    # so it says what it misses.
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    for name, installed in [*pinned, ("torch", version)]:
        information = tmp_path / f"{name.replace('-', '_')}-{installed}.dist-info"
        information.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {installed}\n"
        (information / "METADATA").write_text(metadata)
        (information / "RECORD").touch()
    report = tmp_path / "report.json"
    words = [word for word in shlex.split(line) if word not in ("-e", "--editable")]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-index",
        "--no-build-isolation",
        "--report",
        report,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PYTHONPATH": str(tmp_path), "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*pip, *words], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300)
    if stays:
        assert done.returncode == 0, done.stderr
        installed = {each["metadata"]["name"] for each in json.loads(report.read_text())["install"]}
        assert installed == {"makemore_pl"}
    else:
        assert "No matching distribution found for torch" in done.stderr


@pytest.mark.parametrize(
    ("installed", "offered", "gpu", "taken"),
    [
        ("2.13.0", "", False, None),  # as tested
        ("2.10.1", "", False, None),
        ("2.99.0", "", False, None),
        ("2.9.1", "cpu", False, "torch==2.13.0"),
        (None, "cpu", False, "torch==2.13.0"),  # macOS, Windows, or an index with a CPU build
        (None, "cuda", True, "torch==2.13.0"),
        (None, "cuda", False, "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"),
    ],
)
def test_make_takes_the_tested_torch_where_there_is_none(installed, offered, gpu, taken, checkout):
    # The recipe as make runs it, with a pip that only writes down what it is told.
    recipe = next(line for line in commands(checkout, "install") if line.startswith("if .venv/bin/python"))
    tools = checkout / ".venv" / "bin"
    tools.mkdir(parents=True)
    (checkout / "lib").mkdir()
    if installed:
        (checkout / "lib" / f"torch-{installed}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {installed}\n"
        (checkout / "lib" / f"torch-{installed}.dist-info" / "METADATA").write_text(metadata)
    plan = '{"install": ["nvidia-cublas"]}' if offered == "cuda" else '{"install": ["torch"]}'
    scripts = {
        ".venv/bin/python": f'PYTHONPATH={checkout / "lib"} exec {sys.executable} -S "$@"',
        ".venv/bin/pip": f'case "$*" in *--dry-run*) echo \'{plan}\';; *) echo "$*" >> taken;; esac',
        **({"nvidia-smi": "exit 0"} if gpu else {}),
    }
    for name, script in scripts.items():
        (checkout / name).write_text(f"#!/bin/sh\n{script}\n")
        (checkout / name).chmod(0o755)
    path = os.pathsep.join([str(checkout), "/usr/bin", "/bin"])
    if not gpu and shutil.which("nvidia-smi", path=path):
        pytest.skip("this machine has an NVIDIA GPU")
    done = subprocess.run(["sh", "-c", recipe], cwd=checkout, env={"PATH": path}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = (checkout / "taken").read_text() if (checkout / "taken").exists() else None
    if taken is None:
        assert found is None
        assert "stays" in done.stdout
    else:
        assert found.strip().endswith(f"--progress-bar on {taken}")
