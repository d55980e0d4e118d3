"""Ctrl-C and SIGTERM on one device save a checkpoint and end the run. On several devices the watchdog ends it."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer

from makemore_pl.durable.checkpoints import RunCheckpoint, RunFolder
from makemore_pl.durable.watchdog import in_main_thread, write
from makemore_pl.terminal import command_line

SIGNALS = signal.SIGINT, signal.SIGTERM

PATIENCE = 8
"""Seconds from a signal until the program ends, even if a step, a validation or a checkpoint is not finished."""


last_words: list[Callable[[], str]] = []
"""Make the line to print if a signal ends the program late; empty except in a training that has received one."""


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Within the block, signals end the program without a message, with exit status 130 or 143.

    They do so after `PATIENCE` seconds at the latest, whatever handlers of others do, and even if the main thread is in
    a call that does not return, as when it waits for other processes.
    """
    if not in_main_thread():
        yield
        return

    def leave(number: int, _: Any) -> NoReturn:
        sys.exit(128 + number)

    # A shell sets programs in the background to ignore Ctrl-C.
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in numbers}
    last_words.clear()
    ended = threading.Event()
    received, wake = socket.socketpair()
    wake.setblocking(False)
    wakeup_fd = signal.set_wakeup_fd(wake.fileno())
    threading.Thread(target=end_late, args=(received, ended, numbers), daemon=True, name="signals").start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(wakeup_fd)
        wake.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_late(received: socket.socket, ended: threading.Event, numbers: Sequence[int]) -> None:
    """Ends the program `PATIENCE` seconds after a signal if the main thread has not ended it.

    Args:
        received: a socket with the numbers of signals, each a byte.
        ended: set when the main thread has left.
        numbers: the signals that end the program.
    """
    with received:
        while number := received.recv(1):
            if number[0] in numbers and not ended.wait(PATIENCE):
                for words in last_words:
                    write(words())
                os._exit(128 + number[0])


class Interruption(Callback):
    """Ends a training on one device after the step in which a signal arrives, with a checkpoint of that step.

    Lightning would end it anywhere and save nothing. Here a signal sets `trainer.should_stop`: the Trainer finishes the
    batch, validates and returns. A second signal ends the program at once, and `ending_quietly` after some seconds;
    checkpoints stay whole.

    Args:
        checkpoints: those that save after a validation, `last` at the end; empty to save nothing.
    """

    def __init__(self, *checkpoints: RunCheckpoint) -> None:
        self.checkpoints = checkpoints
        self.found_by_name = False
        self.steps = 0
        self.number: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the signal handlers."""
        self.found_by_name, self.steps = isinstance(trainer.logger, RunFolder), trainer.global_step
        if trainer.world_size > 1 or not in_main_thread():
            return
        environment = trainer.strategy.cluster_environment if hasattr(trainer.strategy, "cluster_environment") else None
        for number in SIGNALS:
            # A cluster may use one of these to requeue a job, which Lightning handles.
            if signal.getsignal(number) != signal.SIG_IGN and number != getattr(environment, "requeue_signal", None):
                signal.signal(number, self.take_signal)  # Lightning restores the previous ones at the end

    def take_signal(self, number: int, _: Any) -> None:
        """Notes a signal; a second one ends the program."""
        if self.number is not None:
            write(f"stopped by {self.name} at once{self.how_to_resume()}")
            os._exit(128 + number)
        self.number = number
        last_words[:] = [self.too_late]

    @property
    def name(self) -> str:
        """The name of the signal."""
        return signal.Signals(self.number or 0).name

    def how_to_resume(self, step: int | None = None) -> str:
        """Returns the end of a message; empty if there is no checkpoint, or none of that step."""
        if not self.checkpoints or self.checkpoints[-1].saved < (step or 0):
            return ""
        path = "last" if self.found_by_name else command_line(self.checkpoints[-1].path)
        where = " from the last checkpoint" if step is None else ""
        return f"; the same command with --ckpt_path {path} resumes{where}"

    def too_late(self) -> str:
        """Returns the message where the main thread does not end in time."""
        return f"stopped by {self.name} before the step finished{self.how_to_resume()}"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a signal, stops the Trainer as soon as a checkpoint can be resumed bit for bit."""
        stepped, self.steps = trainer.global_step > self.steps, trainer.global_step
        if self.number is None or not stepped:  # a checkpoint holds no gradients that are still being accumulated
            return
        if validates_next(trainer, batch_idx):
            trainer.should_stop = True  # the checkpoints are saved after that validation
        elif not trainer.is_last_batch:  # from there Lightning resumes as if the epoch had already ended
            trainer.should_stop = True
            for checkpoint in self.checkpoints:
                checkpoint.paused = True
            for checkpoint in self.checkpoints[-1:]:
                checkpoint.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the program after a signal, if there is nothing to save: checkpoints are called after this callback."""
        if self.number is not None and not self.checkpoints:
            self.end(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the program after a signal."""
        if self.number is not None:
            self.end(trainer)

    def on_exception(self, *_: Any) -> None:
        """Drops the signal: the error ends the run, and the caller may handle it."""
        last_words.clear()
        self.number = None

    def end(self, trainer: Trainer) -> NoReturn:
        assert self.number is not None
        last_words.clear()
        step = trainer.global_step
        write(f"stopped by {self.name} after step {step:,}{self.how_to_resume(step)}")
        sys.exit(128 + self.number)


def validates_next(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or not interval:
        return False
    if every is None:
        return (trainer.fit_loop.total_batch_idx + 1) % interval == 0
    return (trainer.current_epoch + 1) % every == 0 and (batch_idx + 1) % interval == 0
