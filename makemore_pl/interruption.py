"""Ctrl-C and SIGTERM on one device: save, end, and go on later. On several, the watchdog ends the run."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from makemore_pl.checkpointing import RunFolder
from makemore_pl.datamodule import Batches
from makemore_pl.watchdog import in_main_thread, write

SIGNALS = signal.SIGINT, signal.SIGTERM

PATIENCE = 8
"""Seconds that a step, a validation or a checkpoint may take to come to its end."""


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Has signals end the program without a word, with exit status 130 or 143."""

    def leave(number: int, _: Any) -> NoReturn:
        sys.exit(128 + number)

    before = {}
    for number in SIGNALS:
        # A shell has what it runs in the background ignore Ctrl-C.
        if in_main_thread() and signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interruption(Callback):
    """Ends a training on one device after the step that a signal comes in, with a checkpoint of that step.

    Lightning ends it somewhere and saves nothing. A second signal ends the program at once, as it ends when something
    takes longer than `PATIENCE` seconds; checkpoints stay whole.

    Args:
        last: says where to save; None to save nothing.
    """

    def __init__(self, last: ModelCheckpoint | None) -> None:
        self.last = last
        self.findable = False
        self.number: int | None = None
        self.timer: threading.Timer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals, and is asked before each batch whether there was one."""
        self.findable = isinstance(trainer.logger, RunFolder)
        loader = trainer.train_dataloader
        if trainer.world_size > 1 or not isinstance(loader, Batches) or not in_main_thread():
            return
        loader.before_batch.insert(0, lambda: self.end_between_steps(trainer))
        environment = trainer.strategy.cluster_environment if hasattr(trainer.strategy, "cluster_environment") else None
        for number in SIGNALS:
            # Lightning's own way with a scheduler's signal is for whoever sets it to one of these.
            if signal.getsignal(number) != signal.SIG_IGN and number != getattr(environment, "requeue_signal", None):
                signal.signal(number, self.take_signal)  # Lightning gives them back at the end

    def take_signal(self, number: int, _: Any) -> None:
        """Notes a signal; a second one ends the program."""
        if self.number is not None:
            write(f"error: {self.name}: ended at once{self.way_on()}")
            os._exit(128 + number)
        self.number = number
        self.timer = threading.Timer(PATIENCE, self.give_up)
        self.timer.daemon = True
        self.timer.start()

    @property
    def name(self) -> str:
        """The signal as the shell calls it."""
        return signal.Signals(self.number or 0).name

    def way_on(self, saved: str | None = None) -> str:
        """What there is to say of a checkpoint, or of the last one: `last` finds those of run folders alone."""
        path = saved or (self.last.best_model_path if self.last is not None else "")
        name = "last" if self.findable else os.path.relpath(path or ".")
        where = "" if saved else " from the last checkpoint"
        return f"; the same command with --ckpt_path {name} goes on{where}" if path else ""

    def give_up(self) -> None:
        """Ends the program whatever it does."""
        write(f"error: {self.name}: the step did not end in {PATIENCE} seconds{self.way_on()}")
        os._exit(128 + (self.number or 0))

    def end_between_steps(self, trainer: Trainer) -> None:
        """Saves and ends the program if there was a signal."""
        if self.number is None:
            return
        path = self.save(trainer)
        self.end(f"ended after step {trainer.global_step:,}{self.way_on(path) if path else ''}")

    def save(self, trainer: Trainer) -> str:
        """Saves where `last` would; gives the path."""
        if self.last is None:
            return ""
        path = self.last.format_checkpoint_name({})
        trainer.save_checkpoint(path, weights_only=False)
        return path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what was never validated, and ends the program if there was a signal during the last step."""
        if self.last is not None and not self.last.best_model_path:
            self.save(trainer)
        if self.number is not None:
            self.end("ended after the last step")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the program if there was a signal since: from here on it would be forgotten."""
        if self.number is not None:
            self.end("ended after the last step")

    def on_exception(self, *_: Any) -> None:
        """Has a run that ends by itself not be ended once more: whoever called it may go on."""
        if self.timer is not None:
            self.timer.cancel()

    def end(self, how: str) -> NoReturn:
        """Ends the program."""
        assert self.number is not None
        if self.timer is not None:
            self.timer.cancel()
        write(f"error: {self.name}: {how}")
        sys.exit(128 + self.number)
