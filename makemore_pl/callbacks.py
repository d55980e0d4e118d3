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
    """Writes config.yaml when training starts, so after a resumed checkpoint was loaded; has a signal end the run.

    Ctrl-C and SIGTERM then end the process with a line that holds the command to resume, where Lightning would set
    handlers of its own.
    """

    def __init__(self, config: Path, text: str, command: str) -> None:
        self.config, self.text, self.command = config, text, command

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Has EarlyStopping take its patience from the flags, and count anew where it ended the run."""
        for early in trainer.early_stopping_callbacks:
            if state := checkpoint["callbacks"].get(early.state_key):
                if stopped_early(state):
                    state |= {"wait_count": 0, "stopped_epoch": 0}
                state["patience"] = early.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_whole(self.config, self.text.encode())
        process.hint = f"; to resume: {self.command}"
        process.stop_on_signals()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(9)  # the other processes, which would wait for this one

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        process.hint = ""


def stopped_early(state: dict[str, Any]) -> bool:
    """Whether an EarlyStopping with this state ended its run."""
    return bool(state["wait_count"] >= state["patience"] or state["stopped_epoch"] > 0)


class StopNotFinite(Callback):
    """Ends a run whose losses or weights are not finite, with a ValueError before such weights are saved."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses = [(name, value) for name, value in trainer.callback_metrics.items() if name.endswith("loss")]
        for name, value in [*losses, *pl_module.named_parameters()]:
            if not value.isfinite().all():
                remedy = "try a smaller --model.lr, or --trainer.precision 32"
                raise ValueError(f"{name} is not finite after {updates(trainer):,} updates; {remedy}")

    on_train_epoch_end = on_validation_end  # where there is no validation


MOST = torch.get_num_threads()  # that torch chooses by default


def choose_threads(products: float) -> None:
    """Sets the number of threads for forward passes of so many products, rows times parameters.

    Threads wait for each other at the end of every operation: beside other work, a step of the default recipe takes ten
    times as long on two threads as on one (LOG.md).
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(MOST if products >= 2**27 else 1)


class Progress(ProgressBar):
    """Updates, losses, speed and time left on stderr: a live bar on a terminal, a line every few seconds elsewhere.

    Lightning's own bars count the batches of one epoch; a run is measured in updates here, and has many short epochs.
    """

    is_enabled, is_live = True, False

    # Lightning calls these: on all ranks but the first, and around a finder of its own that trains.
    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
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
