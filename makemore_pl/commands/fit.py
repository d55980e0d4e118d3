"""`fit`: the lines that it prints before and after the training."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from makemore_pl.commands.evaluate import COUNTED_WORDS, compare
from makemore_pl.commands.hints import LINES, looks_like
from makemore_pl.commands.messages import say
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable.checkpoints import RunCheckpoint, RunFolder, stopped_early
from makemore_pl.durable.runs import find
from makemore_pl.memory import require_memory
from makemore_pl.model import MLP
from makemore_pl.terminal import command_line, counted, four_digits

MOST_CELLS = 2**26
"""The most contexts x characters of a training split that a fit evaluates at its end."""


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
        words = counted(len(data.words), "word")
        if len(data.words) <= COUNTED_WORDS:
            words += f", {len(set(data.words)):,} distinct"
        words += ": " + " / ".join(f"{len(words):,} {split}" for split, words in data.splits.items())
    say(words)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{counted(len(data.vocabulary) - 1, 'character')}, {counted(parameters, 'parameter')}")
    if changes := describe_changes(data.changed):
        say(f"in the list, {changes}")
    if data.hparams["column"] is None:
        first = next(data.list.read(), []) if data.in_pieces else data.words
        if format := looks_like(first[:LINES]):
            say(f"hint: this list looks like {format}")


def describe_changes(changed: Mapping[str, int]) -> str:
    """Describes how the words differ from the lines of their list; empty if they do not."""
    blank, space, bad = (changed.get(name, 0) for name in ("blank", "space", "bad"))
    parts = [f"{counted(blank, 'blank line')} dropped"] * (blank > 0)
    parts += [f"the space around {counted(space, 'word')} dropped"] * (space > 0)
    if number := changed.get("NFC", 0):
        parts.append(f"{counted(number, 'word')} normalised to NFC (--data.normalization)")
    parts += [f"{counted(bad, 'bad line')} omitted"] * (bad > 0)
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
        judged = f" (val/loss {four_digits(float(loss))})" if loss is not None else ""
        say(f"checkpoint: {os.path.relpath(path)}{judged}")
    if data.hparams["val_fraction"]:
        for line in losses(trainer, model, data):
            say(line)
        chance = math.log(len(data.vocabulary))
        if loss is not None and loss > chance:
            say(f"worse than chance, {chance:.4f}: this run diverged; try a smaller --model.lr")
    if path:
        is_newest = next(find("best", "."), None) == Path(os.path.relpath(path))
        named: list[str | Path] = [] if is_newest else ["--ckpt_path", Path(path)]
        say(f"more names: {command_line('python', '-m', 'makemore_pl', 'predict', *named)}")
    if log_dir and isinstance(trainer.logger, TensorBoardLogger):
        say(f"the curves: {command_line('tensorboard', '--logdir', Path(log_dir).parent)}")
    print(*model.sample(), sep="\n", flush=True)


def losses(trainer: Trainer, model: MLP, data: NamesDataModule) -> list[str]:
    """Formats the losses over the whole splits as a table: of the network, of counting, and of their mixture."""
    counts = data.counts.get("train")
    # Over a large training split it would take long.
    short = counts is not None and len(counts) * counts.vocab_size <= MOST_CELLS
    compared, sets = compare(model, data, trainer, *["train"] * short, "val")
    heads = {"train, all words": f"{'train':>10}", "val, all words": f"{'val':>10}"}
    columns = [heads.get(name, f"{'val, not in train':>20}") for name in sets]
    lines = [f"{'loss':28}{''.join(columns)}"]
    for name, of in compared.losses(*sets.values()).items():
        cells = (four_digits(loss).rjust(len(column)) for loss, column in zip(of, columns, strict=True))
        lines.append(f"{name:28}{''.join(cells)}")
    return [*lines, "val has chosen this checkpoint and the mixture, so it is optimistic: see `test`"]
