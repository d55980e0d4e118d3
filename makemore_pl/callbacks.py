"""The callbacks of `fit`: its folder, the end of a run that diverges, signals, threads, progress."""

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from makemore_pl import process
from makemore_pl.checkpoints import write_whole
from makemore_pl.optimization import total_updates, updates
from makemore_pl.report import four_digits, say


class Run(Callback):
    """Writes config.yaml once the weights and the state of a resumed run fit it, and has a signal end the run.

    Ctrl-C and SIGTERM then end the process with a line that says how to resume; Lightning sets handlers of its own.

    Args:
        config: the path of config.yaml.
        text: all flags of the run, so that `fit --config` with it is the same run.
        command: that resumes.
    """

    def __init__(self, config: Path, text: str, command: str) -> None:
        self.config, self.text, self.command = config, text, command

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_whole(self.config, self.text.encode())
        process.hint = f"; to resume: {self.command}"
        process.stop_on_signals()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the other processes, which would wait for this one."""
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(9)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        process.hint = ""


class BeginAnew(Callback):
    """Has a resumed run forget its best score and the count of EarlyStopping where its words are others.

    Otherwise `best.ckpt` would stay the network of the old list. A run that EarlyStopping ended, and that is told to go
    on, counts anew as well; and its patience is that of the flags, not that of the checkpoint.

    Args:
        changes: what differs between the words of the checkpoint and those of the run; empty if nothing does.
    """

    def __init__(self, changes: str) -> None:
        self.changes = changes

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["callbacks"]
        if self.changes:
            say(f"warning: trained on other words before ({self.changes}): the best score begins anew")
            for key in [key for key in states if key.startswith(("RunCheckpoint best", "EarlyStopping"))]:
                del states[key]
        for early in trainer.early_stopping_callbacks:
            if state := states.get(early.state_key):
                if stopped_early(state):
                    state |= {"wait_count": 0, "stopped_epoch": 0}
                state["patience"] = early.patience


def stopped_early(state: dict[str, Any]) -> bool:
    """Whether an EarlyStopping with this state ended its run."""
    return bool(state["wait_count"] >= state["patience"] or state["stopped_epoch"] > 0)


class StopNotFinite(Callback):
    """Ends a run whose loss is not finite, before such weights are saved."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the last losses and the weights; `on_train_epoch_end` does where there is no validation.

        Raises:
            ValueError: if one is not a finite number.
        """
        losses = {name: trainer.callback_metrics.get(name, torch.zeros(())) for name in ("train/loss", "val/loss")}
        for name, value in [*losses.items(), *pl_module.named_parameters()]:
            if not value.isfinite().all():
                found = f"{name} is {value.item()}" if name in losses else f"{name} is not finite"
                remedy = "try a smaller --model.lr, or --trainer.precision 32"
                raise ValueError(f"{found} after {updates(trainer):,} updates; {remedy}")

    on_train_epoch_end = on_validation_end


MOST = torch.get_num_threads()
"""The number of threads that torch chooses by default."""

LARGE = 2**27
"""The fewest products of a forward pass, rows times parameters, that all threads share."""


def choose_threads(products: float) -> None:
    """Sets the number of threads for forward passes of that size, unless OMP_NUM_THREADS is set.

    Threads wait for each other at the end of every operation: beside other work, a step of the default recipe takes ten
    times as long on two threads as on one (LOG.md).
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(MOST if products >= LARGE else 1)


class Progress(ProgressBar):
    """Updates, losses, speed and time left on stderr: a live bar on a terminal, a line every few seconds elsewhere.

    Lightning's own bars count the batches of one epoch; a run is measured in updates here, and has many short epochs.
    """

    is_enabled, is_live = True, False

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first, and while a finder of its own trains."""
        self.is_enabled = False

    def enable(self) -> None:
        """Lightning calls this when the finder is done."""
        self.is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total, console = total_updates(trainer), Console(stderr=True)
        self.total = None if math.isinf(total) else int(total)
        self.is_live = console.is_terminal and self.is_enabled
        self.start, self.first, self.shown = time.monotonic(), updates(trainer), -math.inf
        smoothed = getattr(getattr(trainer, "datamodule", None), "hparams", {}).get("smoothing")
        self.losses = {"train/loss": "train (smoothed targets)" if smoothed else "train", "val/loss": "val"}
        columns = [MofNCompleteColumn(), BarColumn(None), TextColumn("{task.description}"), TimeRemainingColumn()]
        self.bar = RichProgress(*columns, console=console, disable=not self.is_live)
        self.task = self.bar.add_task("", total=self.total)
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Not each time: reading the losses waits for the device.
        if time.monotonic() - self.shown > (0.5 if self.is_live else 5.0):
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer)
        self.on_exception()

    def on_exception(self, *_: Any) -> None:
        if self.is_live:  # otherwise rich would print an empty line
            self.bar.stop()

    def _show(self, trainer: Trainer) -> None:
        self.shown, done = time.monotonic(), updates(trainer)
        metrics = trainer.progress_bar_metrics
        parts = [f"{name} {four_digits(float(metrics[key]))}" for key, name in self.losses.items() if key in metrics]
        text = "  ".join([*parts, f"{(done - self.first) / (self.shown - self.start):,.0f} updates/s"])
        self.bar.update(self.task, completed=done, description=text)
        if self.is_enabled and not self.is_live:
            say(f"update {done:,}/{self.total:,}  {text}" if self.total else f"update {done:,}  {text}")
