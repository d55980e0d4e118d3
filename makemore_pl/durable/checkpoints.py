"""Checkpoints that are complete or absent, and from which a resumed run is bit-for-bit identical."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from makemore_pl.checkpoint import DIGEST, SEAL, load
from makemore_pl.durable.files import lock, new_file, remove_litter, write_whole
from makemore_pl.durable.runs import saved_in

LITTER = r"(.+\.ckpt|probe)"
"""The names of temporary files that this project makes in a folder of checkpoints, as a regular expression."""


class WholeCheckpoints(TorchCheckpointIO):
    """Saves checkpoints completely or not at all, with a checksum; loads them by the project's own reader.

    The SHA-256 of all bytes before it is in the comment of the zip archive, which `torch.load` ignores.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a checkpoint.

        Raises:
            ValueError: if it cannot be written; an earlier one of that name is unchanged.
        """
        if "://" in str(path):  # an object store writes objects whole by itself
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, pack(checkpoint))
        except OSError as error:
            raise ValueError(f"{path}: cannot be saved ({error.strerror}); what was saved before is kept") from None

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads plain values and tensors, whatever `weights_only` says, and checks the checksum."""
        return load(path)


def pack(checkpoint: dict[str, Any]) -> memoryview:
    """Serializes a checkpoint, with its checksum as the comment of the zip archive."""
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


class RunFolder(TensorBoardLogger):
    """TensorBoard's logger with a new run folder that no other process can take at the same moment.

    Args:
        save_dir: the folder that holds `name`.
        name: the folder that holds those of the runs.
        version: the folder of a run to resume in; None for a new one, `version_N`.
        options: of Lightning's logger.
    """

    def __init__(
        self, save_dir: str | Path, name: str = "lightning_logs", version: str | None = None, **options: Any
    ) -> None:
        super().__init__(save_dir, name, version, **options)
        self.taken: int | str | None = version

    @property
    def version(self) -> int | str:
        """The number of the run, and of its folder, which is made when this property is first read."""
        if self.taken is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            numbers = (path.name.removeprefix("version_") for path in Path(self.root_dir).glob("version_*"))
            number = max((int(each) for each in numbers if each.isdecimal()), default=-1) + 1
            while self.taken is None:
                try:
                    Path(self.root_dir, f"version_{number}").mkdir(parents=True)
                    self.taken = number
                except FileExistsError:
                    number += 1
        return super().version if self.taken is None else self.taken

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Omits the curve of epochs, which Lightning adds: an epoch is a number of updates here, a straight line."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


class CheckpointFolder(Callback):
    """Locks the folder of the checkpoints before the first step, removes litter of killed runs, and tests its disk.

    Args:
        checkpoint: the callback that saves there.
    """

    def __init__(self, checkpoint: ModelCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.locked: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Locks and tests the folder.

        Raises:
            ValueError: if another run writes there or has saved there, or the disk is full or cannot be written.
        """
        folder = Path(str(self.checkpoint.dirpath))  # the logger decides where it is
        if not trainer.is_global_zero or self.locked is not None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.locked = lock(folder)
            if self.locked is None:
                raise ValueError(f"{folder}: another run writes its checkpoints there; wait for its end")
            resumes = trainer.ckpt_path and Path(trainer.ckpt_path).resolve().parent == folder.resolve()
            for path in saved_in(folder) if not resumes else []:
                raise ValueError(f"{path}: exists, and this run would write over it; move it, or use another name")
            # Beside a folder that the user has chosen there may be anything.
            ours = (
                folder.parent.parent.glob(f"version_*/{folder.name}") if isinstance(trainer.logger, RunFolder) else []
            )
            for each in {folder, *ours}:
                remove_litter(each, LITTER)
            self.reserve(folder, trainer, pl_module)
        except OSError as error:
            raise ValueError(f"{folder}: no checkpoint can be saved there ({error.strerror})") from None

    def reserve(self, folder: Path, trainer: Trainer, model: LightningModule) -> None:
        """Allocates as much of the disk as the checkpoints will take, and frees it again.

        Raises:
            OSError: if there is not as much.
        """
        # Weights and the two moments of AdamW; `best` and `last`, and one that is written before it replaces them.
        bytes_each = 8 if trainer.precision == "64-true" else 4
        size = 3 * bytes_each * sum(parameter.numel() for parameter in model.parameters()) + 2**15
        size *= 3 - min(2, len(list(folder.glob("*.ckpt"))))
        with new_file(folder, "probe") as (file, _):
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
                file.flush()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unlocks the folder."""
        if self.locked is not None:
            os.close(self.locked)
            self.locked = None


class RunCheckpoint(ModelCheckpoint):
    """`best` or `last` of a run, saved after each validation.

    From there Lightning resumes with the exact state, counters included; from a checkpoint of the end of an epoch it
    would call the hooks of that end twice.

    Args:
        filename: `best` or `last`, without its ending.
        monitor: the score that decides; None to save after each validation.
        dirpath: the folder; if omitted, in that of the logger.
    """

    def __init__(self, filename: str, monitor: str | None = None, dirpath: Path | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self.saved = -1  # the step
        self.paused = False

    @property
    def state_key(self) -> str:
        """Differs from that of a user's ModelCheckpoint with the same options."""
        return f"{type(self).__name__} {self.filename}"

    @property
    def path(self) -> Path:
        """The file that it writes."""
        return Path(self.format_checkpoint_name({}))

    def save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes the step."""
        self.saved = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, except after a validation caused by a signal: an uninterrupted run has none there."""
        if not self.paused:
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves steps that were not validated, and the state of an EarlyStopping that ended the run."""
        super().on_train_end(trainer, pl_module)
        ended = any(stopped_early(each.state_dict()) for each in trainer.early_stopping_callbacks)
        if self.monitor is None and not self.paused and (ended or self.saved != trainer.global_step):
            self.save(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes whether the run resumes in its own folder, which may have been moved."""
        folder = os.path.realpath(Path(str(trainer.ckpt_path)).parent)
        self.resumed_in_folder = folder == os.path.realpath(str(self.dirpath))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score, also if the folder has another name, as from another current folder.

        Lightning would drop it, and replace the best checkpoint by a worse one.
        """
        if self.resumed_in_folder:
            state_dict = rename_folder(state_dict, str(self.dirpath))
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]


def stopped_early(state: Any) -> bool:
    """Whether an EarlyStopping with this state ended its run."""
    return isinstance(state, dict) and (state.get("stopped_epoch", 0) > 0 or state["wait_count"] >= state["patience"])


def rename_folder(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """Renames the folder in the state of a ModelCheckpoint."""
    before = state["dirpath"]

    def renamed(path: str) -> str:
        return f"{folder}{path.removeprefix(before)}" if path.startswith(f"{before}{os.sep}") else path

    names = "best_model_path", "kth_best_model_path", "last_model_path"
    paths = {name: renamed(state[name]) for name in names}
    best = {renamed(path): score for path, score in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": best, "dirpath": folder}
