import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from makemore_pl import MLP, cli, words

ROOT = Path(__file__).parent.parent

# No test asks how fast: the first text that hypothesis makes takes it a second, and the other core may be busy.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

# A shell has what it runs in the background ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Dropout(MLP):
    """A network that is another one while it trains."""

    def hidden(self, X):
        return torch.dropout(super().hidden(X), 0.5, self.training)


@pytest.fixture
def one_thread():
    """The steps of some tests are small, and two threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def names():
    return (ROOT / "names.txt").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="session")
def command():
    """Runs the command line in a process of its own, as a user would, from any folder."""

    def run(*args, cwd, **options):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-m", "makemore_pl", *map(str, args)],
            cwd=cwd,
            env=environment,
            text=True,
            encoding="utf-8",
            capture_output=True,
            timeout=300,
            **options,
        )

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capfd):
    """Runs the command line inside this process, which saves seconds of imports. Gives (status, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["makemore_pl", *map(str, args)])
        words._stdin.cache_clear()  # another process would read its own
        capfd.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as exit:
            status = exit.code
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def default_fit(tmp_path_factory, command):
    """`python -m makemore_pl fit` in an empty folder, once for all tests. Gives (folder, finished process)."""
    folder = tmp_path_factory.mktemp("default_fit")
    return folder, command("fit", "--trainer.accelerator", "cpu", cwd=folder)


@pytest.fixture(scope="session")
def towns(tmp_path_factory):
    """A small list of another alphabet: spaces, capitals, accents, a full stop, signs outside the basic plane."""
    towns = ["Ångström", "St. Gallen", "名前", "Zoë-Marie", "o'Neil", "🙂👍", "Ä", "Łódź", "Aix en Provence", "x.y."]
    towns *= 3
    path = tmp_path_factory.mktemp("lists") / "towns.txt"
    path.write_text("\n".join(towns) + "\n", encoding="utf-8")
    return path, towns
