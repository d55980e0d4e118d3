"""`make portable`: runs the suite as on other machines, one way after the other, and says which failed.

    python tests/portable.py                 # plain, oldest, newest: half an hour on two cores
    python tests/portable.py plain newest    # some of them

plain is another processor: kernels without vector instructions, one thread. oldest and newest are the versions that
pyproject.toml allows, in environments in `.portable/`. Torch is not downloaded: they link to the one that is here.
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


def run(*command, **options):
    """Runs a command that must succeed; what it said is shown only if it does not."""
    done = subprocess.run([*map(str, command)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout.strip()


def requirements(oldest):
    """The dependencies of pyproject.toml and its extras, without torch: `>=X` becomes `==X` for the oldest.

    For the newest, Lightning has no upper bound, so that its next minor release is tried before the bound is raised.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    lines = [line for line in lines if not re.match(rf"(torch|{project['name']})\b", line)]
    if oldest:
        return [re.sub(r">=\s*([\w.]+)(\s*,[^;]*)?", r"==\1", line) for line in lines]
    return [re.sub(r",<[\w.]+", "", line) if line.startswith("lightning") else line for line in lines]


def environment(name):
    """Makes an environment with the oldest or the newest versions; gives its Python."""
    python = WORK / name / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", WORK / name)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    here = Path(metadata.distribution("torch").locate_file("")).absolute()
    for distribution in metadata.distributions(path=[str(here)]):
        if re.match(r"(torch|triton|nvidia[-_].+|cuda[-_].+)$", distribution.name.lower()):
            for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
                if not (packages / top).exists():
                    (packages / top).symlink_to(here / top)
    listed = WORK / f"{name}.in"
    listed.write_text("\n".join([*requirements(name == "oldest"), f"torch=={metadata.version('torch')}", ""]))
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager", "-r", listed)
    (packages / "checkout.pth").write_text(f"{ROOT}\n")
    (WORK / f"{name}.txt").write_text(run(python, "-m", "pip", "list", "--format", "freeze") + "\n")
    return python


def attempt(name):
    """Runs the suite one way; gives whether it passed, and pytest's last line."""
    try:
        python = sys.executable if name == "plain" else environment(name)
    except RuntimeError as error:
        return False, str(error)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | WAYS[name]
    line = [python, "-m", "pytest", "-n", "2", "--dist", "loadfile"]  # as `make test` has it
    with (WORK / f"{name}.log").open("w") as log:
        done = subprocess.run(line, cwd=ROOT, env=variables | {"OMP_WAIT_POLICY": "passive"}, stdout=log, stderr=log)
    lines = (WORK / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    summaries = [line for line in lines if re.match(r"=*\s*\d+ (passed|failed|skipped|error)", line)]
    return done.returncode == 0, (summaries or lines or [""])[-1].strip("= ")


if __name__ == "__main__":
    WORK.mkdir(exist_ok=True)
    failed = False
    for name in sys.argv[1:] or WAYS:
        print(f"{name}: its output goes to {WORK.relative_to(ROOT) / name}.log", flush=True)
        passed, line = attempt(name)
        print(f"{name}: {'passed' if passed else 'FAILED'}: {line}", flush=True)
        failed |= not passed
    sys.exit(failed)
