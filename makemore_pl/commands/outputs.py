"""Where loggers, callbacks and profilers write: on this machine, and never over a file that is there."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger

from makemore_pl.commands.recipe import run_folder
from makemore_pl.durable.checkpoints import RunFolder
from makemore_pl.optimization import as_list


def refuse_urls(options: Any, flag: str, trusted: Sequence[str]) -> None:
    """Refuses URLs among options, those of nested classes included: Lightning would write to any address.

    Args:
        options: a value, or a group or list of options, not yet made into objects.
        flag: its name, for the error.
        trusted: modules whose classes may have URLs, as loggers of a service need them.

    Raises:
        ValueError: if there is one.
    """
    if isinstance(options, Namespace):
        options = vars(options)
    if isinstance(options, dict):
        name = str(options.get("class_path", ""))
        if not any(f"{name}.".startswith(f"{module}.") for module in trusted):
            for key, value in options.items():
                refuse_urls(value, flag if key in ("init_args", "dict_kwargs") else f"{flag}.{key}", trusted)
    elif isinstance(options, list | tuple | set):
        for value in options:
            refuse_urls(value, flag, trusted)
    elif "://" in str(options):
        raise ValueError(f"{flag} {options}: is a URL; name a folder, or --trust the module of a logger that needs it")


@rank_zero_only
def refuse_overwriting(command: str, trainer: Trainer, flags: Namespace, ckpt_path: str | None, states: Any) -> None:
    """Refuses to begin where a logger, a callback or a profiler would write over a file, or remove it.

    Our own checkpoints are in a new folder, or written over by the run that resumes in its folder.

    Args:
        command: its name.
        trainer: not yet run.
        flags: its flags, not yet made into objects.
        ckpt_path: the checkpoint that a run resumes from.
        states: of the callbacks in it.

    Raises:
        ValueError: if there is such a file; it names the first.
    """
    resumed = Path(ckpt_path).resolve() if ckpt_path else None
    for path in fixed_files(command, trainer, flags, resumed is None, states):
        if path.exists() and path.resolve() != resumed:
            raise ValueError(f"{path}: exists, and this run would write over it; move it, or use another name")


def fixed_files(command: str, trainer: Trainer, flags: Namespace, is_new: bool, states: Any) -> Iterator[Path]:
    """Yields the files that a run writes under a name that is no new one; some need not exist."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):  # it removes one that is there
            yield Path(logger.log_dir, "metrics.csv")
    numbered = isinstance(trainer.logger, RunFolder) and trainer.logger.taken is None  # a new one
    if command == "fit" and is_new and trainer.logger is not None and not numbered:
        yield run_folder(trainer) / "config.yaml"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, OnExceptionCheckpoint):  # after a run without one it removes the file
            yield Path(callback.ckpt_path)
    known = [state.get("dirpath") for state in states.values() if isinstance(state, dict)]
    for spec in as_list(flags.callbacks):
        options = spec.get("init_args", {})
        folder = options.get("dirpath") if options.get("enable_version_counter") is False else None
        if folder and os.path.realpath(folder) not in known:
            yield from Path(folder).glob("*.ckpt")
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]
    folder = getattr(profiler, "dirpath", None) or (trainer.default_root_dir if trainer.logger is None else None)
    if folder and hasattr(profiler, "filename"):
        yield from Path(folder).glob(f"{command}-{glob.escape(profiler.filename or '')}*")
