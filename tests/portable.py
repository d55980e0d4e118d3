"""`make portable`: runs the whole suite as other machines would, one way after the other, and says which failed.

    python tests/portable.py              # all six, an hour and a half on two cores
    python tests/portable.py plain avx2   # some of them

What it makes (environments, a copy of the project, the output of each run) lies in `.portable/`. Torch is never
downloaded: the environments link to the one that is installed here, whichever build that is.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".portable"
PYTEST = "-m", "pytest", "-n", "2", "--dist", "loadfile"  # as `make test` has it
DROP_RIGHTS = "setpriv", "--bounding-set=-all", "--inh-caps=-all"


class Skipped(Exception):
    """Why a way cannot be tried on this machine."""


def run(*command, **options):
    """Runs a command that must succeed; what it said is shown only if it does not."""
    done = subprocess.run([*map(str, command)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout.strip()


def requirements(oldest):
    """The dependencies of pyproject.toml and its extras, without torch.

    For the oldest `>=X` becomes `==X`; for the newest Lightning has no upper bound, so that its next minor release is
    tried before the bound is raised.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = [re.match(r"[\w.-]+", line)[0].lower().replace("-", "_") for line in lines]
    lines = [line for name, line in zip(names, lines, strict=True) if name not in ("torch", project["name"])]
    if not oldest:
        return [re.sub(r",<[\w.]+", "", line) if line.startswith("lightning") else line for line in lines]
    return [re.sub(r">=\s*([\w.]+)(\s*,[^;]*)?", r"==\1", line) for line in lines]


def make_environment(name):
    """Makes an environment of this Python in `.portable/`; gives its interpreter and the folder of its packages."""
    python = WORK / name / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", WORK / name)
    return python, Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))


def link_torch(packages):
    """Puts links to the installed torch, and to what its builds for GPUs come with, into another environment."""
    here = Path(metadata.distribution("torch").locate_file("")).absolute()
    for distribution in metadata.distributions(path=[str(here)]):
        if re.match(r"(torch|triton|nvidia-.+|cuda-.+)$", distribution.name.lower().replace("_", "-")):
            for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
                if not (packages / top).exists():
                    (packages / top).symlink_to(here / top)


def with_versions(oldest):
    """An environment with the oldest versions that pyproject.toml allows, or the newest there are. Gives its Python."""
    name = "oldest" if oldest else "newest"
    python, packages = make_environment(name)
    link_torch(packages)
    listed = WORK / f"{name}.in"
    listed.write_text("\n".join([*requirements(oldest), f"torch=={metadata.version('torch')}", ""]))
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager", "-r", listed)
    (packages / "checkout.pth").write_text(f"{ROOT}\n")
    (WORK / f"{name}.txt").write_text(run(python, "-m", "pip", "list", "--format", "freeze") + "\n")
    return python, ROOT, ()


def without_writing():
    """A copy of the tracked files in which nothing can be written. Gives the Python, the copy, and how to run there.

    Root may write anywhere, whatever the mode says, and often no other user can reach this interpreter. So root gives
    away its capabilities: what is left of it is an owner like any other.
    """
    python, packages = make_environment("readonly")
    copy = WORK / "copy"
    if copy.exists():
        run("chmod", "-R", "u+w", copy)
        shutil.rmtree(copy)
    for name in run("git", "ls-files", "-z", cwd=ROOT).rstrip("\0").split("\0"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    # The copy first, then the packages that are installed here: not the files *.pth among them, of which one may lead
    # to the checkout.
    (packages / "copy.pth").write_text(f"{copy}\n{sysconfig.get_path('purelib')}\n")
    run("chmod", "-R", "a-w", copy)
    prefix = ()
    if os.geteuid() == 0:
        if not shutil.which(DROP_RIGHTS[0]):
            raise Skipped("root writes everywhere, and there is no setpriv (util-linux) to take that from it")
        prefix = DROP_RIGHTS
    tried = subprocess.run([*prefix, "touch", copy / "tests" / "written"], capture_output=True)
    if tried.returncode == 0:
        raise Skipped("this user can write into the copy whatever its mode says")
    return python, copy, prefix


WAYS = {
    "native": (lambda: (sys.executable, ROOT, ()), {}),
    "plain": (lambda: (sys.executable, ROOT, ()), {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}),
    "avx2": (lambda: (sys.executable, ROOT, ()), {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"}),
    "readonly": (without_writing, {}),
    "oldest": (lambda: with_versions(oldest=True), {}),
    "newest": (lambda: with_versions(oldest=False), {}),
}
"""How the suite is run: something that gives the Python, the folder and what goes before; and the environment."""


def attempt(name):
    """Runs the suite one way; gives whether it passed, and pytest's last line."""
    prepare, variables = WAYS[name]
    python, folder, prefix = prepare()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_WAIT_POLICY": "passive", **variables}
    found = run(*prefix, python, "-c", "import makemore_pl; print(makemore_pl.__file__)", cwd="/", env=environment)
    if Path(found).resolve() != (folder / "makemore_pl" / "__init__.py").resolve():
        return False, f"the tests would be those of another makemore_pl, {found}"
    output = WORK / f"{name}.log"
    with output.open("w") as log:
        done = subprocess.run([*prefix, python, *PYTEST], cwd=folder, env=environment, stdout=log, stderr=log)
    # What a plugin or a thread says on its way out may come after pytest's last line.
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    summaries = [line for line in lines if re.match(r"=*\s*\d+ (passed|failed|skipped|error)", line)]
    return done.returncode == 0, (summaries or lines or [""])[-1].strip("= ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(WAYS)}; all if none is named")
    asked = parser.parse_args().names or list(WAYS)
    if unknown := set(asked) - set(WAYS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(WAYS)}")
    WORK.mkdir(exist_ok=True)
    failed, skipped = [], []
    for name in asked:
        print(f"{name}: begins; its output goes to {WORK.relative_to(ROOT) / name}.log", flush=True)
        try:
            passed, line = attempt(name)
        except Skipped as reason:
            skipped.append(name)
            print(f"{name}: skipped, since {reason}", flush=True)
            continue
        except (RuntimeError, OSError) as error:
            passed, line = False, str(error)
        failed += [] if passed else [name]
        print(f"{name}: {'passed' if passed else 'FAILED'}: {line}", flush=True)
    passed = [name for name in asked if name not in failed + skipped]
    for kind, names in {"passed": passed, "skipped": skipped, "failed": failed}.items():
        print(f"{kind}: {', '.join(names) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
