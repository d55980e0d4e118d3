"""Available memory, checked before large allocations."""

import os
from contextlib import suppress
from pathlib import Path

LITTLE = 2**28
"""Bytes that are allocated without a check."""


def require_memory(size: int, what: str) -> None:
    """Refuses an allocation that would not fit: the system would end the program in the middle of it.

    Raises:
        ValueError: if this machine has fewer bytes free.
    """
    if size >= LITTLE and size > (free := free_memory()):
        raise ValueError(f"{what} would take {size / 2**30:,.3g} GB of memory; {free / 2**30:,.3g} GB are free")


def require_memory_to_read(path: str | Path) -> None:
    """Refuses a list whose words would not fit into memory; a list that is no file has no known size.

    Raises:
        ValueError: if this machine has fewer bytes free.
    """
    with suppress(OSError):  # reading it gives the error
        if Path(path).is_file():
            # A line of eight bytes becomes a word of 56, and 8 bytes for the reference to it.
            require_memory(8 * Path(path).stat().st_size, f"{path}: all words at once (--data.split hashed holds none)")


def free_memory() -> float:
    """Bytes that are free, or could be; infinite where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024  # Linux
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")
