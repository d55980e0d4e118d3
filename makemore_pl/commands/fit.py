"""`fit`: the lines that it prints before and after the training."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from makemore_pl.commands.evaluate import COUNTED_WORDS, compare
from makemore_pl.commands.messages import command_line, say
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable.checkpoints import RunCheckpoint, RunFolder, stopped_early
from makemore_pl.memory import require_memory
from makemore_pl.model import MLP


def run_logger(trainer: Namespace, resumed: str | None) -> RunFolder:
    """Makes TensorBoard's logger.

    Args:
        trainer: the flags of the Trainer.
        resumed: the checkpoint of a run that resumes, in its own folder if this logger made it.
    """
    root, folder = trainer.default_root_dir or ".", Path(resumed or "").parent.parent
    version = folder.name if resumed and folder.parent == Path(root, "lightning_logs") else None
    return RunFolder(root, "lightning_logs", version, default_hp_metric=False)


def describe(data: NamesDataModule, model: MLP) -> None:
    """Prints the size of the data and of the network."""
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
    """Describes how the words differ from the lines of their list; empty if they do not."""
    blank, space = changed.get("blank", 0), changed.get("space", 0)
    parts = [f"{blank:,} blank line{'s' * (blank > 1)} dropped"] * (blank > 0)
    parts += [f"the space around {space:,} word{'s' * (space > 1)} dropped"] * (space > 0)
    if number := changed.get("NFC", 0):
        parts.append(f"{number:,} word{'s' * (number > 1)} normalised to NFC (--data.normalization)")
    return ", ".join(parts)


def load_teacher(data: NamesDataModule) -> None:
    """Loads the teacher of the data, if it has one."""
    if (path := data.hparams["teacher"]) is not None:
        teacher = MLP.load_from_checkpoint(path, "cpu")
        data.learn_from(teacher, teacher.vocabulary, teacher.block_size)
        parameters = sum(parameter.numel() for parameter in teacher.parameters())
        say(f"teacher: {os.path.relpath(path)}, {parameters:,} parameters")


def require_memory_to_train(model: MLP) -> None:
    """Refuses a model whose training would not fit into memory.

    Raises:
        ValueError: if so.
    """
    # Beside each parameter its gradient and two moments of AdamW; and a checkpoint of all but the gradient.
    require_memory(24 * sum(parameter.numel() for parameter in model.parameters()), "training this model")


def report(trainer: Trainer, model: MLP, data: NamesDataModule) -> None:
    """Prints where the best checkpoint is and its losses on stderr, and names on stdout.

    Raises:
        ValueError: if no validation loss was finite.
    """
    log_dir, best, last = trainer.log_dir, None, None  # a broadcast: all ranks call it
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RunCheckpoint):
            best, last = (callback, last) if callback.monitor else (best, callback)
    if not trainer.is_global_zero:
        return
    for early in trainer.early_stopping_callbacks:
        if stopped_early(early.state_dict()):
            say(f"ended at step {trainer.global_step:,}: {early.monitor} did not fall in {early.patience} validations")
    path, loss = "", None
    if best is not None and last is not None:
        loss = best.best_model_score
        path = best.best_model_path or str(last.path)  # without validation there is no best
    if loss is not None and not torch.isfinite(loss):
        raise ValueError("the validation loss was never a finite number; try a smaller --model.lr")
    if path:
        model = type(model).load_from_checkpoint(path, "cpu")
        judged = f" (val/loss {loss:.4f}), chosen by it, so it is optimistic: see `test`" if loss is not None else ""
        say(f"checkpoint: {os.path.relpath(path)}{judged}")
    if data.hparams["val_fraction"]:
        compared, sets = compare(model, data, trainer, "val")
        found = compared.losses(*sets.values())
        losses = [f"{name.split(',')[0]} {of[0]:.4f}" for name, of in found.items()]
        unseen = [f"{loss:.4f}" for of in found.values() for loss in of[1:]]
        line = f"; on words not in train {', '.join(unseen)}" if unseen else ""
        say(f"compared: {', '.join(losses)}{line}")
    if path:
        say(f"more names: {command_line('python', '-m', 'makemore_pl', 'predict', '--ckpt_path', Path(path))}")
    if log_dir and isinstance(trainer.logger, TensorBoardLogger):
        say(f"the curves: {command_line('tensorboard', '--logdir', Path(log_dir).parent)}")
    print(*model.sample(), sep="\n", flush=True)
