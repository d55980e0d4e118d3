"""Settings of the whole process: which stock messages are dropped, how memory is kept, whom it ends with."""

import contextlib
import ctypes
import logging
import os
import signal
import warnings


def silence_stock_noise() -> None:
    """Drops the lines that Lightning prints on every run and that ask nothing of anybody; real warnings stay."""
    noise = (
        *("💡 Tip:", "GPU available: ", "TPU available: ", "`Trainer.fit` stopped: `max_"),
        *("Using 16bit Automatic", "Using bfloat16 Automatic", "Restoring states from the", "Restored all states from"),
        "You are using a CUDA device",  # and should choose: --matmul_precision
        *("Initializing distributed: ", f"{'-' * 100}\ndistributed_backend="),
    )
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.distributed",
    ):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(noise))
    # torch renamed the first, Lightning still uses it; the second is false, since steps are counted across epochs;
    # the third is what happens to a run that begins from a file of another; the fourth is false, since batches follow
    # from the step; the fifth is what happens to one that resumes; the sixth we refuse.
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
    """Has glibc keep what is freed: by default it returns every block of some megabytes to the system.

    Each step would get the same blocks back page by page, which is a quarter of its time on counted rows.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, gigabyte = -1, -3, 2**30
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, gigabyte)
        mallopt(M_TRIM_THRESHOLD, gigabyte)


def end_with_parent() -> None:
    """Has Linux end a process that Lightning launched once its parent is gone, also before the watchdog is awake."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ:
        PR_SET_PDEATHSIG = 1
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another system
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
