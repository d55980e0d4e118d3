"""Finds the checkpoints of earlier runs."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from makemore_pl.checkpoint import DIGEST, SEAL

PLACES = (
    "lightning_logs/version_*/checkpoints",
    "checkpoints",
    "checkpoints-v*",
    "*/*/checkpoints",
    "*/*/*/checkpoints",
)
"""Folders of checkpoints below the folder of all runs: of the logger of `fit`, without a logger, and of other loggers,
by the name and version of a run, in the root or a folder in it."""


def folder_without_logger(root: str | Path, resumed: str | None) -> Path:
    """Returns where a run without a logger saves: `checkpoints`, or `checkpoints-v1`, ... if there is another run.

    Args:
        root: the folder that holds the runs.
        resumed: the checkpoint of a run that resumes, in its own folder if that was made here.
    """
    names = itertools.chain(["checkpoints"], (f"checkpoints-v{number}" for number in itertools.count(1)))
    own = Path(resumed).resolve().parent if resumed else None
    if own is not None and own.parent == Path(root).resolve() and re.fullmatch(r"checkpoints(-v\d+)?", own.name):
        return own
    return next(folder for name in names if not saved_in(folder := Path(root, name)))


def saved_in(folder: Path) -> list[Path]:
    """Returns those of `best` and `last` that are in a folder."""
    return [path for name in ("best", "last") if os.path.lexists(path := folder / f"{name}.ckpt")]


def newest(name: str = "best", root: str | Path = ".") -> Path:
    """Returns a checkpoint of the newest run, to load: `MLP.load_from_checkpoint(newest())`.

    Args:
        name: `best`, of the lowest validation loss, or `last`; the other one if that is missing.
        root: the folder that holds the runs, as in `--trainer.default_root_dir`.

    Raises:
        FileNotFoundError: if there is no run.
    """
    for path in find(name, root):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no run found in {Path(root).absolute()}; train first (python -m makemore_pl fit)")


def find(name: str, root: str | Path, besides: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Finds `best` or `last` of the newest run, then those that can replace it, the nearest first.

    Args:
        name: `best` or `last`; `last` may also be a checkpoint that Lightning saved when SLURM requeued the job.
        root: the folder that holds the runs.
        besides: checkpoints whose runs are skipped.

    Yields:
        The file itself, the other one of its run, then those of the run before, and so on. The first may not exist.
    """
    skipped = {Path(path).resolve().parent for path in besides}
    saved: dict[Path, float] = {}
    for path in itertools.chain.from_iterable(Path(root).glob(f"{place}/*.ckpt") for place in PLACES):
        with contextlib.suppress(OSError):  # a link that leads nowhere, or a run that is being removed
            if is_of_run(path, Path(root)) and path.resolve().parent not in skipped:
                saved[path.parent] = max(saved.get(path.parent, 0), path.stat().st_mtime)
    for number, folder in enumerate(sorted(saved, key=saved.__getitem__, reverse=True)):
        other = folder / ("last.ckpt" if name == "best" else "best.ckpt")
        named = folder / f"{name}.ckpt"
        requeued = [path for path in folder.glob("hpc_ckpt_*.ckpt") if name == "last" and is_newer(path, named)]
        yield from sorted(requeued, key=lambda path: path.stat().st_mtime, reverse=True)
        if named.is_file() or (number == 0 and not requeued):
            yield named
        if other.is_file():
            yield other


def is_of_run(path: Path, root: Path) -> bool:
    """Whether a file is a checkpoint of a run of this project in `root`, rather than of another program or root."""
    first, *rest = path.relative_to(root).parts
    if first == "lightning_logs":
        return True
    if not path.is_file():
        return False
    if len(rest) == 4:  # root/save_dir/name/version/checkpoints/file, or the runs of another root in this one
        configs = [folder / "config.yaml" for folder in (path.parents[1], root / first)]
        texts = [config.read_text("utf-8", errors="replace") for config in configs if config.is_file()]
        lines = [line for text in texts for line in text.splitlines()]
        saved_in = [line.partition("save_dir:")[2].strip().strip("'\"") for line in lines if "save_dir:" in line]
        if first not in [Path(each).name for each in saved_in]:
            return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(SEAL) - DIGEST))
        return file.read(len(SEAL)) == SEAL


def is_newer(path: Path, other: Path) -> bool:
    """Whether a file was written after another one, which may not exist."""
    return not other.is_file() or path.stat().st_mtime > other.stat().st_mtime
