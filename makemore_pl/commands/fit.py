"""`fit`: its callbacks, its logger, and what it says before and after."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from makemore_pl.commands.callbacks import Progress, StopNotFinite
from makemore_pl.commands.evaluate import COUNTED_WORDS, compare
from makemore_pl.commands.messages import say
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable.checkpoints import CheckpointFolder, RunCheckpoint, RunFolder
from makemore_pl.durable.interruption import Interruption
from makemore_pl.memory import require_memory
from makemore_pl.model import MLP
from makemore_pl.optimization import as_list
from makemore_pl.pictures.board import Board


def fit_callbacks(trainer: Namespace, pictures: bool, in_blocks: bool) -> list[Callback]:
    """Makes the callbacks of a fit, beside those of the user.

    Args:
        trainer: the flags of the Trainer, with the user's callbacks.
        pictures: whether TensorBoard shows pictures.
        in_blocks: whether several updates make one batch; then the model logs the learning rate itself.
    """
    checkpoints: list[RunCheckpoint] = []
    if trainer.enable_checkpointing is not False and not trainer.fast_dev_run:
        # Two: `save_last` saves only beside a new best, and an overfitting run has none.
        checkpoints = [RunCheckpoint("best", monitor="val/loss"), RunCheckpoint("last")]
    logs = trainer.logger is not False and not trainer.fast_dev_run
    return [
        *progress(trainer),
        StopNotFinite(),
        *([LearningRateMonitor("step")] if logs and not in_blocks else []),
        *([Board()] if logs and pictures else []),
        *([CheckpointFolder(checkpoints[0])] if checkpoints else []),
        *checkpoints,
        Interruption(*checkpoints),
    ]


def progress(trainer: Namespace) -> list[Callback]:
    """Makes the progress bar, unless it is turned off or the user brings one."""
    given = any(isinstance(callback, ProgressBar) for callback in as_list(trainer.callbacks))
    return [] if given or trainer.enable_progress_bar is False else [Progress()]


def run_folder(trainer: Namespace, resumed: str | None) -> RunFolder:
    """Makes TensorBoard's logger.

    Args:
        trainer: the flags of the Trainer.
        resumed: the checkpoint of a run that resumes in its own folder.
    """
    version = Path(resumed).parent.parent.name if resumed else None
    return RunFolder(trainer.default_root_dir or ".", "lightning_logs", version, default_hp_metric=False)


def describe(data: NamesDataModule, model: MLP) -> None:
    """Says how many words there are, and how large the network is."""
    if data.in_pieces:
        words = "words in pieces"
    else:
        sizes = " / ".join(f"{len(words):,} {split}" for split, words in data.splits.items())
        words = f"{len(data.words):,} words ({sizes})"
        if len(data.words) <= COUNTED_WORDS:
            words += f", {len(set(data.words)):,} distinct"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{words}, {len(data.vocabulary) - 1} characters, {parameters:,} parameters")
    if changes := describe_changes(data.changed):
        say(f"in the list, {changes}")


def describe_changes(changed: Mapping[str, int]) -> str:
    """Describes how words differ from the lines of their list; empty if none does."""
    blank, space = changed.get("blank", 0), changed.get("space", 0)
    parts = [f"{blank:,} blank line{'s' * (blank > 1)} dropped"] * (blank > 0)
    parts += [f"the space around {space:,} word{'s' * (space > 1)} dropped"] * (space > 0)
    if number := changed.get("NFC", 0):
        parts.append(f"{number:,} word{'s' * (number > 1)} normalised to NFC (--data.normalization)")
    return ", ".join(parts)


def require_memory_to_train(model: MLP) -> None:
    """Refuses a model whose training would not fit into memory.

    Raises:
        ValueError: if so.
    """
    # Beside each parameter its gradient and two moments of AdamW; and a checkpoint of all but the gradient.
    require_memory(24 * sum(parameter.numel() for parameter in model.parameters()), "training this model")


def report(trainer: Trainer, model: MLP, data: NamesDataModule) -> None:
    """Says where the best checkpoint is and how good, and prints names.

    Raises:
        ValueError: if no validation loss was finite.
    """
    log_dir, best, last = trainer.log_dir, None, None  # all ranks take part in finding the folder
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RunCheckpoint):
            best, last = (callback, last) if callback.monitor else (best, callback)
    if not trainer.is_global_zero:
        return
    path, loss = "", None
    if best is not None and last is not None:
        loss = best.best_model_score
        path = os.path.relpath(best.best_model_path or last.path)  # nothing was validated: the last
    if loss is not None and not torch.isfinite(loss):
        raise ValueError("the validation loss was never a finite number; try a smaller --model.lr")
    if path:
        model = type(model).load_from_checkpoint(path, "cpu")
        say(f"checkpoint: {path}" + (f" (val/loss {loss:.4f})" if loss is not None else ""))
    if data.hparams["val_fraction"]:
        _, scores = compare(model, data, trainer, "val")
        losses = [f"{name.split(',')[0]} {of[0].loss:.4f}" for name, of in scores.items()][:3]
        unseen = [f"{score.loss:.4f}" for of in scores.values() for score in of[1:]][:3]
        line = f"; on words not in train {', '.join(unseen)}" if unseen else ""
        say(f"compared: {', '.join(losses)}{line}")
    if path:
        say(f"more names: python -m makemore_pl predict --ckpt_path {shlex.quote(path)}")
    if log_dir and isinstance(trainer.logger, TensorBoardLogger):
        say(f"the curves: tensorboard --logdir {shlex.quote(os.path.relpath(Path(log_dir).parent))}")
    print(*model.sample(), sep="\n", flush=True)
