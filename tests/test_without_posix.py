"""The command line without what Windows lacks. It takes the place of a Windows machine in part only."""

import subprocess
import sys

import pytest

AS_ON_WINDOWS = """
import ctypes, os, signal, sys
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
import lightning.pytorch, torch, matplotlib, multiprocessing  # these know Windows themselves
from lightning.pytorch.trainer.connectors import signal_connector

has = {signal.SIGINT, signal.SIGTERM, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
signal_connector._IS_WINDOWS = True
signal_connector._SignalConnector._get_current_signal_handlers = staticmethod(
    lambda: {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
)
for name in dir(signal):
    if name.startswith("SIG") and not name.startswith("SIG_") and getattr(signal, name) not in has:
        delattr(signal, name)
for name in ("pthread_sigmask", "setitimer", "alarm", "siginterrupt"):
    delattr(signal, name)
posix = ("fork", "getuid", "geteuid", "sysconf", "posix_fallocate", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "getpgid")
for name in (*posix, "setsid", "killpg", "sched_getaffinity", "uname", "mkfifo", "statvfs", "fchmod", "statvfs"):
    if hasattr(os, name):
        delattr(os, name)

set_handler, open_descriptor, load_library = signal.signal, os.open, ctypes.CDLL.__init__

def signal_of_windows(number, handler):
    if number not in has:
        raise ValueError("invalid signal value")
    return set_handler(number, handler)

def open_no_folder(path, *arguments, **options):
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return open_descriptor(path, *arguments, **options)

def load_named_library(self, name, *arguments, **options):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    load_library(self, name, *arguments, **options)

signal.signal, os.open, ctypes.CDLL.__init__ = signal_of_windows, open_no_folder, load_named_library
sys.stdout.reconfigure(encoding="cp1252")
from makemore_pl.__main__ import main
main()
"""

WORDS = ["Łódź", "Zoë", "名前", "Αθήνα", "Киïв", "Żnin", "Åby", "õne", "Łuk"]


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Runs the command line in one folder, without what Windows lacks. Gives the finished process."""
    folder = tmp_path_factory.mktemp("windows")
    (folder / "towns.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")

    def run(*arguments, standard_input=None):
        command = [sys.executable, "-c", AS_ON_WINDOWS, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=folder, input=standard_input, capture_output=True, text=True, encoding="utf-8", timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done

    fit = run("fit", "--data.path", "towns.txt", "--trainer.max_steps", 8, "--model.hidden_size", 8)
    return folder, run, fit


def letters(text):
    return set(text.replace("\n", ""))


def test_fit_prints_names_of_any_alphabet(windows):
    _, _, fit = windows
    assert len(fit.stdout.splitlines()) == 20
    assert letters(fit.stdout) <= letters("".join(WORDS))
    assert letters(fit.stdout) - {chr(code) for code in range(256)}  # more than cp1252 could take


def test_a_run_resumes_and_is_sampled_judged_and_exported(windows):
    folder, run, fit = windows
    assert run("predict").stdout == fit.stdout
    assert run("test").stdout.startswith("test, all words")
    assert "step 8" in run("fit", "--ckpt_path", "last", "--trainer.max_steps", 12).stderr
    run("export", "--output", "page.html")
    assert r"\u0141" in (folder / "page.html").read_text(encoding="utf-8")  # the first letter of Łódź
    found = run("lr_find", "--data.path", "towns.txt", "--num_steps", 20)
    assert found.stdout.startswith("python -m makemore_pl fit")
    score = run("predict", "--sample.score", "-", standard_input="Łódź\n")
    assert score.stdout.rstrip("\n").endswith("\tŁódź")
