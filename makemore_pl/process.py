"""Settings of the whole process: how it ends, how it keeps memory. Imports nothing slow."""

import ctypes
import os
import signal
import sys
from typing import Any

hint = ""  # how to resume: the end of the line that `stop` prints


def stop(number: int, *_: Any) -> None:
    """Ends the process at once, with one line and exit status 130 or 143.

    A signal is then a kill like any other. An exception could leave torch, Lightning or another process waiting.
    """
    if is_first():
        cursor = "\033[?25h\n" if os.isatty(2) else ""  # a progress bar hides it
        os.write(2, f"{cursor}stopped by {signal.Signals(number).name}{hint}\n".encode())
    os._exit(128 + number)


def stop_on_signals() -> None:
    """Calls `stop` on Ctrl-C and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def is_first() -> bool:
    """Whether this is the first of the processes of a run, which makes its folder and writes its files."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK"))


def end_unless_first() -> None:
    """Ends a process that is done before the first one is."""
    if not is_first():
        os._exit(0)  # torch's destructors abort one process of ten, and torchrun then ends the first one (LOG.md)


def end_with_parent() -> None:
    """Has Linux end one of several processes when the process that launched it ends; it would train on otherwise."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("LOCAL_RANK", "0") != "0"
    if sys.platform == "linux" and launched:
        parent, PR_SET_PDEATHSIG = os.getppid(), 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)


def keep_freed_memory() -> None:
    """Has glibc keep freed memory: to get it back page by page takes a quarter of an update's time on counted rows."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, gigabyte = -1, -3, 2**30
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, gigabyte)
        libc.mallopt(M_TRIM_THRESHOLD, gigabyte)
