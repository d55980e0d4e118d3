"""Files that are complete or absent, whenever the process or the machine stops; also where others may write. Locks."""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Writes a file at once.

    Raises:
        OSError: if it cannot be written; a file that was there is unchanged.
    """
    with writing(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` once the block has ended without an error and all bytes are on the disk.

    A new file has the usual mode, one that replaces a file has the mode of that file. A link at `path` is replaced as
    well, never followed. Pipes and devices are written to directly, also through the links /dev/stdout and /dev/fd/N.

    Raises:
        OSError: if it cannot be written; a file that was there is unchanged.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    descriptor_link = path.parent in (Path("/dev"), Path("/dev/fd")) or path.is_relative_to("/proc")
    descriptor_link = descriptor_link and path.is_symlink()
    if descriptor_link or is_pipe_or_device(path):
        flags = os.O_WRONLY | os.O_APPEND | (0 if descriptor_link else getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(os.open(path, flags), "wb") as file:
            yield file
        return
    with new_file(path.parent, path.name) as (file, partial):
        yield file
        keep_mode(path, file)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()  # Windows renames no open file
        partial.replace(path)
    with contextlib.suppress(OSError):  # Windows and some network disks cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def new_file(folder: Path, name: str) -> Iterator[tuple[BinaryIO, Path]]:
    """Creates a temporary file, locked, whose name contains `name`; gives the file and its path.

    It is removed at the end unless it has been renamed. If the process is killed it stays, unlocked, until the next
    call with the same folder and name.

    Raises:
        OSError: if it cannot be created.
    """
    remove_litter(folder, re.escape(name))
    while True:
        path = folder / f".{name}.{secrets.token_hex(8)}.partial"
        file = path.open("xb")  # fails where the name is taken, also by a link
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network disks have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink > 0:
            break
        file.close()  # another process removed it as litter before it was locked
    try:
        yield file, path
    finally:
        with contextlib.suppress(OSError):  # a full disk: the bytes are of no use now
            file.close()
        path.unlink(missing_ok=True)


def remove_litter(folder: Path, name: str) -> None:
    """Removes temporary files that killed processes of this user left.

    Args:
        folder: that holds them.
        name: a regular expression; temporary files of matching names are removed.
    """
    for path in folder.glob(".*.partial"):
        if re.fullmatch(rf"\.{name}\.[0-9a-f]{{16}}\.partial", path.name):
            with contextlib.suppress(OSError):  # in use, or removed by another process
                remove_abandoned(path)


def remove_abandoned(path: Path) -> None:
    """Removes a temporary file that belongs to this user and that no process has locked.

    Raises:
        OSError: if it is in use.
    """
    if fcntl is None:
        path.unlink()  # Windows refuses this for an open file
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    finally:
        os.close(descriptor)


def lock(folder: Path) -> int | None:
    """Locks a folder until the returned descriptor is closed or the process ends.

    Returns:
        The descriptor; None if another process has the lock. Where the system has no locks, always a descriptor.
    """
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass  # some network disks have no locks
    return descriptor


def is_pipe_or_device(path: Path) -> bool:
    """Whether a path is neither a file nor a folder nor a link nor free."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def keep_mode(path: Path, file: BinaryIO) -> None:
    """Gives a file the mode of the one that it will replace, if that belongs to this user."""
    with contextlib.suppress(OSError, AttributeError):  # there is none; Windows
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            os.fchmod(file.fileno(), found.st_mode & 0o777)
