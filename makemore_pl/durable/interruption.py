"""Ctrl-C and SIGTERM on one device: save, end, and resume later. On several, the watchdog ends the run."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer

from makemore_pl.durable.checkpoints import RunCheckpoint, RunFolder
from makemore_pl.durable.watchdog import in_main_thread, write

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

    Lightning ends it somewhere and saves nothing. Here a signal has the Trainer stop: it ends the batch, validates and
    leaves. A second signal ends the program at once, as it ends when something takes longer than `PATIENCE` seconds;
    checkpoints stay whole.

    Args:
        checkpoints: those that save after a validation, `last` at the end; empty to save nothing.
    """

    def __init__(self, *checkpoints: RunCheckpoint) -> None:
        self.checkpoints = checkpoints
        self.findable = False
        self.steps = 0
        self.number: int | None = None
        self.timer: threading.Timer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals."""
        self.findable, self.steps = isinstance(trainer.logger, RunFolder), trainer.global_step
        if trainer.world_size > 1 or not in_main_thread():
            return
        environment = trainer.strategy.cluster_environment if hasattr(trainer.strategy, "cluster_environment") else None
        for number in SIGNALS:
            # Lightning handles a scheduler's signal by itself, where it is set to one of these.
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

    def way_on(self, step: int | None = None) -> str:
        """How to resume, where there is a checkpoint of a step, or any: `last` finds those of run folders alone."""
        if not self.checkpoints or self.checkpoints[-1].saved < (step or 0):
            return ""
        name = "last" if self.findable else os.path.relpath(self.checkpoints[-1].path)
        where = " from the last checkpoint" if step is None else ""
        return f"; the same command with --ckpt_path {name} resumes{where}"

    def give_up(self) -> None:
        """Ends the program whatever it does."""
        write(f"error: {self.name}: the step did not end in {PATIENCE} seconds{self.way_on()}")
        os._exit(128 + (self.number or 0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Has the Trainer stop where a run can resume bit for bit, if there was a signal."""
        stepped, self.steps = trainer.global_step > self.steps, trainer.global_step
        if self.number is None or not stepped:  # gradients that are still being accumulated are in no checkpoint
            return
        if validates_next(trainer, batch_idx):
            trainer.should_stop = True  # then the checkpoints are saved as ever
        elif not trainer.is_last_batch:  # Lightning resumes from there as if the epoch's end had been
            trainer.should_stop = True
            for checkpoint in self.checkpoints:
                checkpoint.paused = True
            for checkpoint in self.checkpoints[-1:]:
                checkpoint.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the program if there was a signal."""
        # The checkpoints come after this callback, and may have to save what was never validated.
        if self.number is not None and not self.checkpoints:
            self.end(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the program if there was a signal: from here on it would be forgotten."""
        if self.number is not None:
            self.end(trainer)

    def on_exception(self, *_: Any) -> None:
        """Forgets the signal: an error ends the run, and its caller may continue."""
        if self.timer is not None:
            self.timer.cancel()
        self.number = None

    def end(self, trainer: Trainer) -> NoReturn:
        """Ends the program."""
        assert self.number is not None
        if self.timer is not None:
            self.timer.cancel()
        step = trainer.global_step
        write(f"error: {self.name}: ended after step {step:,}{self.way_on(step)}")
        sys.exit(128 + self.number)


def validates_next(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or not interval:
        return False
    if every is None:
        return (trainer.fit_loop.total_batch_idx + 1) % interval == 0
    return (trainer.current_epoch + 1) % every == 0 and (batch_idx + 1) % interval == 0
