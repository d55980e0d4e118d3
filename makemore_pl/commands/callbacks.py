"""Callbacks of the command line: settings of a process, the progress of a training, the end of one that diverges."""

import math
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

from makemore_pl.commands.messages import write_utf8
from makemore_pl.commands.process import silence_stock_noise
from makemore_pl.optimization import number_of_steps
from makemore_pl.terminal import four_digits


class Settings(Callback):
    """Settings of each process of a run: spawned ones do not see the command line.

    Args:
        matmul_precision: of float32 products.
    """

    def __init__(self, matmul_precision: str) -> None:
        self.matmul_precision = matmul_precision

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        silence_stock_noise()
        write_utf8()
        torch.set_float32_matmul_precision(self.matmul_precision)


class Progress(ProgressBar):
    """Steps, losses, speed and time left on stderr: a live bar on a terminal, a line every few seconds elsewhere.

    Lightning's own bars count the batches of one epoch; a run is measured in steps here, and has many short epochs.
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
        self.total = int(total) if (total := number_of_steps(trainer)) != float("inf") else None
        self.start = self.said = time.monotonic()
        self.first_step, self.first = trainer.global_step, True
        console = Console(stderr=True)
        if self.enabled and console.is_terminal:
            columns = [MofNCompleteColumn(), BarColumn(None), TextColumn("{task.description}"), TimeRemainingColumn()]
            self.bar = RichProgress(*columns, console=console)
            self.task = self.bar.add_task("", total=self.total)
            self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Prints the first loss, and moves the bar at most twice a second: reading the losses waits for the device."""
        if self.first and self.enabled:
            self._say(trainer)
        self.first = False
        if self.bar is not None and self._due(0.5, trainer):
            self.bar.update(self.task, completed=trainer.global_step, description=self._describe(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a line where there is no bar, at most every five seconds."""
        if self.bar is None and self.enabled and not trainer.sanity_checking and self._due(5.0, trainer):
            self._say(trainer)

    def _say(self, trainer: Trainer) -> None:
        steps = f"{trainer.global_step}/{self.total}" if self.total else f"{trainer.global_step}"
        line = f"step {steps}  {self._describe(trainer)}"
        if self.bar is not None:
            self.bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.global_step, description=self._describe(trainer))
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _due(self, seconds: float, trainer: Trainer) -> bool:
        now = time.monotonic()
        due = now - self.said > seconds or trainer.global_step == self.total
        self.said = now if due else self.said
        return due

    def _describe(self, trainer: Trainer) -> str:
        losses = trainer.progress_bar_metrics
        speed = (trainer.global_step - self.first_step) / (time.monotonic() - self.start)
        found = [(name.split("/")[0], float(losses[name])) for name in ("train/loss", "val/loss") if name in losses]
        parts = [f"{name} {four_digits(loss)}" for name, loss in found]
        return "  ".join(parts + [f"{speed:,.0f} steps/s"])


class StopNotFinite(Callback):
    """Ends a run whose loss is not finite, before such weights are saved.

    On a GPU it ends one batch late. In a block of updates it checks the loss of the last one: once a weight is not
    finite, no later loss is.
    """

    def __init__(self) -> None:
        self.noted: tuple[int, Tensor, torch.Event] | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Checks a loss: on a GPU that of the step before, so that no step waits for its own.

        Raises:
            ValueError: if it is not finite.
        """
        # The mean over several devices is the same on all, so that all end.
        loss = outputs["loss"] if trainer.world_size == 1 else trainer.callback_metrics["train/loss"]
        if loss.device.type != "cuda":
            self._judge(trainer.global_step, loss.item())
            return
        if self.noted is not None:
            step, value, copied = self.noted
            copied.synchronize()
            self._judge(step, value.item())
        value = loss.detach().to("cpu", non_blocking=True)
        self.noted = trainer.global_step, value, torch.cuda.current_stream().record_event()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Checks the weights, and the validation loss that the checkpoint may follow.

        Raises:
            ValueError: if one is not finite.
        """
        val_loss = trainer.callback_metrics.get("val/loss", torch.zeros(()))
        if not all(tensor.isfinite().all() for tensor in [*checkpoint["state_dict"].values(), val_loss]):
            self._judge(trainer.global_step, math.nan)

    def _judge(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise ValueError(f"step {step:,}: the loss is {loss}; try a smaller --model.lr, or --trainer.precision 32")
