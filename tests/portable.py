"""`make portable`: runs the suite as on other machines, one way after the other, and says which failed.

    python tests/portable.py                 # plain, oldest, newest: half an hour on two cores
    python tests/portable.py plain newest    # some of them

plain is another processor: kernels without vector instructions, one thread. oldest and newest are the versions that
pyproject.toml allows, in environments in `.portable/`. Torch is not downloaded: they find the one that is here.
"""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".portable"
WAYS = {"plain": {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}, "oldest": {}, "newest": {}}


def requirements(name):
    """The dependencies of pyproject.toml and its extras, without torch: `>=X` becomes `==X` for the oldest.

    For the newest, Lightning has no upper bound, so that its next minor release is tried before the bound is raised.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    lines = [line for line in lines if not re.match(rf"(torch|{project['name']})\b", line)]
    if name == "oldest":
        return [re.sub(r">=\s*([\w.]+)(\s*,[^;]*)?", r"==\1", line) for line in lines]
    return [re.sub(r",<[\w.]+", "", line) if line.startswith("lightning") else line for line in lines]


def environment(name):
    """Makes an environment with the oldest or the newest versions; gives its Python."""
    subprocess.run([sys.executable, "-m", "venv", WORK / name], check=True)
    (packages,) = (WORK / name).glob("lib/python*/site-packages")
    # What is not installed there, such as torch, comes from the environment that runs this.
    (packages / "here.pth").write_text(f"{ROOT}\n{metadata.distribution('torch').locate_file('')}\n")
    python, torch = WORK / name / "bin" / "python", f"torch=={metadata.version('torch')}"
    pip = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run([*pip, *requirements(name), torch], check=True)
    return python


def passes(name):
    """Runs the suite one way."""
    python = sys.executable if name == "plain" else environment(name)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | WAYS[name]
    line = [python, "-m", "pytest", "-n", "2", "--dist", "loadfile"]  # as `make test` has it
    return subprocess.run(line, cwd=ROOT, env=variables | {"OMP_WAIT_POLICY": "passive"}).returncode == 0


if __name__ == "__main__":
    failed = [name for name in sys.argv[1:] or WAYS if not passes(name)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
