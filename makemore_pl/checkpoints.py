"""Checkpoints that are whole or absent, the folder of a run, and the newest run.

A run is a folder, `lightning_logs/version_N`, with config.yaml and `checkpoints`: `best.ckpt` of the lowest validation
loss and `last.ckpt` of the last validation, whatever the logger. Nothing in a checkpoint is executed.
"""

import io
import os
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

RUNS = "lightning_logs"  # the folder of all runs, in `--trainer.default_root_dir`


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Writes a file that is complete or absent: a run that is killed meanwhile leaves the file as it was before."""
    path = Path(path)
    # In the same folder, as a rename is atomic on one disk only; one fixed name, so that at most one is left behind.
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's plugin for checkpoint files, which saves them whole and never executes what they contain."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(path, buffer.getbuffer())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read(path)


def read(path: str | Path) -> Any:
    """Loads a file of torch's onto the CPU: plain values and tensors, never code; a damaged one is a ValueError."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load itself verifies no checksum
                raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises any of a dozen types, from zip, pickle and torch
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path}: damaged, or not a checkpoint ({type(error).__name__}); choose another") from None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint of an MLP; raises ValueError if the file holds something else."""
    checkpoint = read(path)
    ours = {"state_dict": "C", "hyper_parameters": "vocabulary"}
    if not isinstance(checkpoint, dict) or any(name not in checkpoint.get(part, ()) for part, name in ours.items()):
        raise ValueError(f"{path}: not a checkpoint of makemore_pl; choose another")
    return checkpoint


class RunCheckpoint(ModelCheckpoint):
    """`last.ckpt` of a run, saved after each validation, or `best.ckpt`: from either a run resumes bit for bit."""

    def __init__(self, folder: Path, filename: str, monitor: str | None = None, validates: bool = True) -> None:
        super().__init__(folder, filename, monitor, enable_version_counter=False, save_on_train_epoch_end=not validates)
        self.path = Path(self.format_checkpoint_name({}))
        self.validates, self.saved = validates, -1  # the step of the last validation

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score where its file is in this folder, which may have been moved meanwhile."""
        path, score = str(self.path), state_dict["best_model_score"]
        if self.path.exists() and score is not None:
            names = dict.fromkeys(["best_model_path", "kth_best_model_path"], path)
            state_dict |= names | {"dirpath": self.dirpath, "best_k_models": {path: score}, "kth_value": score}
        super().load_state_dict(state_dict)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.saved = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.monitor is None and self.validates and self.saved != trainer.global_step:
            trainer.save_checkpoint(self.path)  # of steps that no validation followed


def new_folder(root: str | Path) -> Path:
    """Makes the folder of a new run; of two runs that start at the same moment, each gets its own."""
    number = 0
    while True:
        folder = Path(root, RUNS, f"version_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def remove_unused(folder: Path) -> None:
    """Removes the folder of a new run that a mistake ended before it saved a checkpoint."""
    if not any(folder.glob("checkpoints/*.ckpt")):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # if there is no other run


def newest(name: str = "best", root: str | Path = ".") -> Path:
    """Returns `best` or `last` of the newest run in root/lightning_logs: `MLP.load_from_checkpoint(newest())`.

    Raises:
        FileNotFoundError: if there is no run.
    """
    for path in find(name, newest_run(root)):
        return path
    raise FileNotFoundError(f"no run found in {Path(root, RUNS)}; train first (python -m makemore_pl fit)")


def newest_run(root: str | Path, begun: bool = False) -> Path | None:
    """Finds the run that last saved `best` or `last`; if `begun`, one that has saved nothing yet counts as well."""
    files = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", *["config.yaml"] * begun]
    written = [path for file in files for path in Path(root, RUNS).glob(f"version_*/{file}")]
    newest = max(written, key=lambda path: path.stat().st_mtime, default=None)
    return newest and next(folder for folder in newest.parents if folder.name.startswith("version_"))


def find(name: str, folder: Path | None) -> list[Path]:
    """Lists `best` or `last` of a run, and then the other one, as far as they exist."""
    names = (name, "last" if name == "best" else "best")
    paths = [folder / "checkpoints" / f"{each}.ckpt" for each in names] if folder else []
    return [path for path in paths if path.is_file()]
