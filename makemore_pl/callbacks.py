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


class SaveConfig(Callback):
    """Writes config.yaml into the folder of a run, once the weights and the state of a resumed run fit it.

    Args:
        path: of the file.
        text: all flags of the run, so that `fit --config` with it is the same run.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_whole(self.path, self.text.encode())


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


class Stoppable(Callback):
    """Has Ctrl-C and SIGTERM end the process with a line that says how to resume; Lightning sets handlers of its own.

    Args:
        last: the checkpoint that is there to resume from, from the first validation on.
        command: that resumes.
    """

    def __init__(self, last: Path, command: str) -> None:
        self.last, self.command = last, command

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        process.speaks = trainer.is_global_zero
        process.stop_on_signals()
        self.on_validation_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The file is written right after this hook, in that of the checkpoints.
        done = updates(trainer)
        process.hint = f" after update {done:,}; to resume: {self.command}" if done or self.last.exists() else ""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the other processes, which would wait for this one."""
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(9)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        process.hint = ""


MOST = torch.get_num_threads()
"""The number of threads that torch chooses by default."""

LARGE = 2**27
"""The fewest products of a forward pass, rows times parameters, that all threads share."""


def choose_threads(products: float) -> None:
    """Sets the number of threads for operations of that size, unless OMP_NUM_THREADS is set.

    Threads wait for each other at the end of every operation: beside other work, a step of the default recipe takes ten
    times as long on two threads as on one (LOG.md).
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(MOST if products >= LARGE else 1)


class Threads(Callback):
    """Chooses the number of threads when training, evaluation or sampling begins; validations inside keep it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._choose(trainer.train_dataloader, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.training:
            self._choose(trainer.val_dataloaders, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._choose(trainer.test_dataloaders, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._choose(trainer.predict_dataloaders, pl_module)

    def _choose(self, loader: Any, model: LightningModule) -> None:
        rows = getattr(loader, "batch_size", None) or math.inf
        choose_threads(rows * sum(parameter.numel() for parameter in model.parameters()))


class Progress(ProgressBar):
    """Updates, losses, speed and time left on stderr: a live bar on a terminal, a line every few seconds elsewhere.

    Lightning's own bars count the batches of one epoch; a run is measured in updates here, and has many short epochs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: RichProgress | None = None
        self.enabled = True

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first, and while a finder of its own trains."""
        self.enabled = False

    def enable(self) -> None:
        """Lightning calls this when the finder is done."""
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = total_updates(trainer)
        self.total = None if math.isinf(total) else int(total)
        self.start = self.said = time.monotonic()
        self.first, self.begun = updates(trainer), False
        hparams = getattr(getattr(trainer, "datamodule", None), "hparams", {})
        self.train = "train (smoothed targets)" if hparams.get("smoothing") else "train"
        console = Console(stderr=True)
        if self.enabled and console.is_terminal:
            columns = [MofNCompleteColumn(), BarColumn(None), TextColumn("{task.description}"), TimeRemainingColumn()]
            self.bar = RichProgress(*columns, console=console)
            self.task = self.bar.add_task("", total=self.total)
            self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Says the first loss, and moves the bar at most twice a second: reading the losses waits for the device."""
        if not self.begun:
            self.begun = True
            self._say(trainer)
        elif self.bar is not None and self._due(0.5):
            self._move(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says the losses where there is no bar, at most every five seconds, and at the end."""
        if trainer.sanity_checking or self.bar is not None:
            return
        if self._due(5.0) or updates(trainer) == self.total:
            self._say(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._move(trainer)
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _say(self, trainer: Trainer) -> None:
        line = f"update {updates(trainer):,}/{self.total:,}" if self.total else f"update {updates(trainer):,}"
        if self.bar is not None:
            self.bar.console.print(f"{line}  {self._describe(trainer)}", highlight=False)
        elif self.enabled:
            say(f"{line}  {self._describe(trainer)}")

    def _move(self, trainer: Trainer) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=updates(trainer), description=self._describe(trainer))

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _due(self, seconds: float) -> bool:
        due = time.monotonic() - self.said > seconds
        self.said = time.monotonic() if due else self.said
        return due

    def _describe(self, trainer: Trainer) -> str:
        losses = trainer.progress_bar_metrics
        names = {"train/loss": self.train, "val/loss": "val"}
        parts = [f"{name} {four_digits(float(losses[key]))}" for key, name in names.items() if key in losses]
        speed = (updates(trainer) - self.first) / (time.monotonic() - self.start)
        return "  ".join([*parts, f"{speed:,.0f} updates/s"])
