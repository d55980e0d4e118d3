"""Checkpoints that are whole or not there, and from which a run goes on as if it had not stopped."""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from makemore_pl.datamodule import Batches
from makemore_pl.loading import DIGEST, SEAL, load

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
"""The end of the name of a file that is being written."""

LITTER = re.compile(rf"\.(.+\.ckpt|probe)\.\d+\{PARTIAL}")
"""What killed processes of this project leave in a folder of checkpoints; `.movie.partial` is somebody else's."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint into a file of its own that takes its place when it is safe on the disk, with a seal.

    The seal is a checksum over all bytes in the comment of the zip archive, where `torch.load` takes no notice of it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a checkpoint.

        Raises:
            ValueError: if the disk does not take it; what was there before is still there.
        """
        if "://" in str(path):  # no file: an object store has its own ways
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            write_whole(Path(path), pack(checkpoint))
        except OSError as error:
            raise ValueError(f"{path}: cannot be saved ({error.strerror}); what was saved before is kept") from None

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint with its seal looked at."""
        return load(path)


def pack(checkpoint: dict[str, Any]) -> memoryview:
    """The bytes of a checkpoint, sealed: its checksum in the comment of the zip archive, where there was none."""
    buffer = io.BytesIO()
    torch.save(checkpoint | {"sealed": True}, buffer)
    with buffer.getbuffer() as content:  # in place: there may be no memory for another copy
        assert bytes(content[-22:-18]) == b"PK\5\6"
        assert bytes(content[-2:]) == bytes(2)
        content[-2:] = (len(SEAL) + DIGEST).to_bytes(2, "little")
    buffer.seek(0, io.SEEK_END)
    buffer.write(SEAL)
    with buffer.getbuffer() as content:
        digest = hashlib.sha256(content).hexdigest()
    buffer.write(digest.encode())
    return buffer.getbuffer()


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file that is there completely or not at all, whenever the process or the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Windows, and some network disks, know no such thing
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def find(name: str, root: str | Path) -> Iterator[Path]:
    """Finds `best` or `last` of the newest run, and then what may stand in for it, the nearest first.

    Args:
        name: `best` or `last`.
        root: the folder that holds `lightning_logs`.

    Yields:
        The file that is meant, the other one of its run, and so on with the run before. The first may not exist.
    """
    newest: dict[Path, float] = {}
    for path in Path(root, "lightning_logs").glob("version_*/checkpoints/*.ckpt"):
        with contextlib.suppress(OSError):  # a link that leads nowhere, or a run that is being removed
            newest[path.parent] = max(newest.get(path.parent, 0), path.stat().st_mtime)
    for folder in sorted(newest, key=newest.__getitem__, reverse=True):
        for each in (name, "last" if name == "best" else "best"):
            path = folder / f"{each}.ckpt"
            if path.is_file() or (path.parent, each) == (max(newest, key=newest.__getitem__), name):
                yield path


class RunFolder(TensorBoardLogger):
    """TensorBoard's logger with a run folder that no other process takes at the same moment."""

    @property
    def version(self) -> int | str:
        """The number of the run, and of its folder; the folder is made when this is first asked for."""
        if self._version is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            version = self._get_next_version()
            while self._version is None:
                try:
                    Path(self.root_dir, f"version_{version}").mkdir(parents=True)
                    self._version = version
                except FileExistsError:
                    version += 1
        return super().version


class CheckpointFolder(Callback):
    """Takes the folder of the checkpoints before the first step.

    It keeps other runs out, removes what killed ones left, and tries whether there is room.
    """

    def __init__(self) -> None:
        self.locked: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does so.

        Raises:
            ValueError: if another run writes there, or the disk is full or cannot be written.
        """
        folder = Path(trainer.log_dir or ".", "checkpoints")  # asked of all ranks
        if not trainer.is_global_zero or self.locked is not None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.locked = lock(folder)
            if self.locked is None:
                raise ValueError(f"{folder}: another run writes its checkpoints there; wait for its end")
            remove_litter(folder)
            self.try_room(folder, trainer, pl_module)
        except OSError as error:
            raise ValueError(f"{folder}: no checkpoint can be saved there ({error.strerror})") from None
        if not isinstance(trainer.logger, RunFolder):
            return  # beside the folder there is what has nothing to do with this run
        runs = folder.parent.parent.glob(f"version_*/{folder.name}/.*{PARTIAL}")
        for other in {path.parent for path in runs} - {folder}:
            with contextlib.suppress(OSError):
                if (locked := lock(other)) is not None:
                    remove_litter(other)
                    os.close(locked)

    def try_room(self, folder: Path, trainer: Trainer, model: LightningModule) -> None:
        """Takes as much of the disk as the checkpoints will, and gives it back."""
        # Weights, the two moments of AdamW, gradients of a step that has begun; `best` and `last`, and one that is
        # written before it takes their place.
        tensors = 3 + (trainer.accumulate_grad_batches > 1)
        bytes_each = 8 if trainer.precision == "64-true" else 4
        size = tensors * bytes_each * sum(parameter.numel() for parameter in model.parameters()) + 2**15
        size *= 3 - min(2, len(list(folder.glob("*.ckpt"))))
        probe = folder / f".probe.{os.getpid()}{PARTIAL}"
        try:
            with probe.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.write(bytes(size))
        finally:
            probe.unlink(missing_ok=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets others in."""
        if self.locked is not None:
            os.close(self.locked)
            self.locked = None


def lock(folder: Path) -> int | None:
    """Locks a folder until the descriptor that it returns is closed, or the process is gone; None if it is locked."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass  # some network disks lock no folders
    return descriptor


def remove_litter(folder: Path) -> None:
    """Removes what killed processes had begun to write."""
    for path in folder.glob(f".*{PARTIAL}"):
        if LITTER.fullmatch(path.name):
            path.unlink(missing_ok=True)


class ExactResume(Callback):
    """Has a run go on from each of its checkpoints as if it had not stopped, which Lightning alone does in part.

    The order of batches and the learning rate are pure functions of the step, so what is left are Lightning's
    counters, the gradients of a step that has only begun, and the last score.
    """

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Turns the end of an epoch into the beginning of the next, and keeps the gradients of a step that has begun.

        Lightning would go on inside of the epoch or take one twice.
        """
        loader, loop = trainer.train_dataloader, trainer.fit_loop.epoch_loop
        if not isinstance(loader, Batches):
            return
        if loop._should_accumulate():
            checkpoint["gradients"] = {
                # Those of several devices are averaged before the step in any case.
                name: trainer.strategy.reduce(parameter.grad, reduce_op="mean")
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None
            }
        if not loop._num_ready_batches_reached():
            return
        saved = checkpoint["loops"]["fit_loop"]
        saved["state_dict"]["combined_loader"] = [{"step": loader.next_epoch()}]
        for counters in (saved["epoch_progress"]["total"], saved["epoch_progress"]["current"]):
            done = counters["ready"]
            counters |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
        optimizer = saved["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        saved["epoch_loop.batch_progress"]["is_last_batch"] = False
        for counters in (
            saved["epoch_loop.batch_progress"]["current"],
            optimizer["step"]["current"],
            optimizer["zero_grad"]["current"],
            saved["epoch_loop.val_loop.batch_progress"]["total"],
        ):
            counters |= dict.fromkeys(counters, 0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes what Lightning leaves in the checkpoint."""
        self.gradients = checkpoint.get("gradients", {})
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key, {})
            if isinstance(callback, ModelCheckpoint) and state:
                callback.current_score = state.get("current_score")
                if os.path.realpath(Path(str(trainer.ckpt_path)).parent) == os.path.realpath(str(callback.dirpath)):
                    rename_folder(state, str(callback.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the gradients back."""
        for name, gradient in self.gradients.items():
            parameter = pl_module.get_parameter(name)
            parameter.grad = gradient.to(parameter)
        self.gradients = {}
        if trainer.ckpt_path is not None and isinstance(trainer.train_dataloader, Batches):
            trainer.train_dataloader.before_batch.insert(0, lambda: count_logged_steps(trainer))


def rename_folder(state: dict[str, Any], folder: str) -> None:
    """Gives what a ModelCheckpoint knows of its folder the folder's present name.

    Lightning forgets the best score where the name has changed, as it does from another current folder, and so lets a
    worse checkpoint take the place of the best.
    """
    before = state["dirpath"]

    def renamed(path: str) -> str:
        return f"{folder}{path.removeprefix(before)}" if path.startswith(f"{before}{os.sep}") else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = renamed(state[name])
    state["best_k_models"] = {renamed(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = folder


def count_logged_steps(trainer: Trainer) -> None:
    """Corrects the number under which Lightning logs a step: it may be one off after a checkpoint was loaded."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
