"""Settings of the whole process: dropped stock messages, memory, and its end together with the parent process."""

import contextlib
import ctypes
import logging
import os
import threading
import time
import warnings


def silence_stock_noise() -> None:
    """Drops lines that Lightning prints on every run and that need no action; other warnings stay."""
    noise = (
        *("💡 Tip:", "GPU available: ", "TPU available: ", "`Trainer.fit` stopped: `max_"),
        *("Using 16bit Automatic", "Using bfloat16 Automatic", "Restoring states from the", "Restored all states from"),
        "You are using a CUDA device",  # it recommends what --matmul_precision does
        *("Initializing distributed: ", f"{'-' * 100}\ndistributed_backend="),
    )
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.distributed",
    ):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(noise))
    # Torch renamed the first, which Lightning still uses. The second is wrong, as steps are counted across epochs. The
    # third is normal for a run that starts from a checkpoint in another folder. The fourth is wrong, as batches follow
    # from the step. The fifth is normal for a resumed run. The sixth comes with an error of ours.
    for message in [
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "The number of training batches .+ is smaller",
        "The dirpath has changed from",
        "You're resuming from a checkpoint that ended before the epoch ended",
        "Checkpoint directory .+ exists and is not empty",
        "You passed `Trainer\\(accelerator='cpu', precision='16-mixed'\\)`",
    ]:
        warnings.filterwarnings("ignore", message)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning every block of some megabytes to the system.

    Otherwise each step gets the same blocks back page by page, a quarter of its time on counted rows.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, gigabyte = -1, -3, 2**30
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, gigabyte)
        mallopt(M_TRIM_THRESHOLD, gigabyte)


PARENT = "MAKEMORE_PL_PARENT"
"""The environment variable by which a process tells those that Lightning launches from it its process id."""


def end_with_parent() -> None:
    """Ends a process that Lightning or torchrun launched within a second after its parent has ended.

    Called before the imports, so that no moment is uncovered: the watchdog starts with the training. A parent that has
    ended even before this call is noticed by its process id, which only Lightning passes on.
    """
    given, os.environ[PARENT] = os.environ.get(PARENT), str(os.getpid())
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    by_lightning = not by_torchrun and os.environ.get("LOCAL_RANK", "0") != "0" and given is not None
    if os.name != "posix" or not (by_torchrun or by_lightning):  # on Windows getppid never changes
        return
    parent = given if by_lightning else str(os.getppid())

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
