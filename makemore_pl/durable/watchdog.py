"""Ends a run on several devices as a whole when one of its processes dies, hangs or is told to stop."""

import multiprocessing
import os
import platform
import secrets
import select
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import DistError, all_gather_object

BEAT, END = b"\0", b"\1"

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""What ends a process at once; Windows, which has no SIGKILL, ends one at once on SIGTERM."""


class Watchdog(Callback):
    """Ends all processes of a run soon after one of them is lost, so that none waits for it forever.

    Left alone, the others wait in their next exchange of gradients: for half an hour, or without end.

    A thread in each process exchanges a datagram a second with the first process. A run ends when a process has been
    silent for `patience` seconds; when its steps have stood still for as long, and four times as long as ever before;
    when the program that launched it is gone; or on SIGTERM and SIGINT, which Lightning would answer with an exchange
    between processes that may never come about. The process that notices prints one line and ends the processes of its
    machine; checkpoints stay. The first step, checkpoints, and what comes before and after training may take as long as
    they like.

    Args:
        patience: seconds of silence, 3 or more.

    Raises:
        ValueError: if patience is below 3.
    """

    def __init__(self, patience: int = 6) -> None:
        if patience < 3:
            raise ValueError(f"patience is {patience}: expected 3 or more seconds, since there is one sign a second")
        self.patience = patience
        self.thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the processes known to each other, and starts to watch."""
        if trainer.world_size == 1 or self.thread is not None:
            return
        self.rank, self.world_size = trainer.global_rank, trainer.world_size
        self.steps = 0  # counted by the main thread, watched by the other
        self.counting = False  # between two steps of which the second should come
        self.saved = False
        self.heard: dict[int, int] = {}  # rank -> ticks since its last sign of life
        self.addresses: dict[int, Any] = {}  # where to reach it
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        self.socket, first = open_socket(environment.main_address, listen=self.rank == 0)
        port = self.socket.getsockname()[1] if self.rank == 0 else None
        this = machine(), os.getpid(), port, secrets.token_bytes(16)
        everyone = [this] * trainer.world_size
        all_gather_object(everyone, this)
        self.family = [pid for where, pid, *_ in everyone if where == this[0] and pid != this[1]]
        _, _, port, self.token = everyone[0]  # the token keeps out the datagrams of others
        if self.rank:
            self.addresses[0] = (first[0], port, *first[2:])
        # A parent that is no launcher, such as the shell under nohup, may well leave.
        launched = "TORCHELASTIC_RUN_ID" in os.environ or multiprocessing.parent_process() is not None
        self.parent = os.getppid() if launched or os.getppid() in self.family else None
        # Lightning handles a scheduler's signal by itself, where it is set to one of these.
        self.ends = {signal.SIGTERM, signal.SIGINT} - {getattr(environment, "requeue_signal", None)}
        self.signals, self.wake = socket.socketpair()
        self.wake.setblocking(False)
        self.wakeup_fd: int | None = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True, name="watchdog")
        self.thread.start()

    def take_signals(self, *_: Any) -> None:
        """Has signals end the run. Lightning takes them after `on_fit_start`, and gives them back at the end."""
        if self.thread is None or self.wakeup_fd is not None or not in_main_thread():
            return
        # Python runs handlers in the main thread, which may be stuck in an exchange; the descriptor gets the signal's
        # number at once.
        self.wakeup_fd = signal.set_wakeup_fd(self.wake.fileno())
        for number in self.ends:
            signal.signal(number, lambda *_: None)

    on_train_start = on_validation_start = on_test_start = on_predict_start = take_signals  # type: ignore[assignment]

    def watch(self) -> None:
        """What the thread does."""
        ticks = steps = still = longest = 0
        next_tick = time.monotonic()
        while not self.stopped.is_set():
            ready, _, _ = select.select([self.socket, self.signals], [], [], max(0.0, next_tick - time.monotonic()))
            if self.signals in ready:
                number = self.signals.recv(1)[0]
                if number in self.ends:
                    self.end(signal.Signals(number).name, 128 + number)
            if self.socket in ready:
                self.receive()
            if time.monotonic() < next_tick:
                continue
            # Time is counted in ticks, so that a run that was suspended as a whole continues when it is woken.
            next_tick = time.monotonic() + 1
            ticks += 1
            self.send(BEAT)
            for rank in self.heard:
                self.heard[rank] += 1
                if self.heard[rank] > self.patience:
                    self.end(f"process {rank} has been silent for {self.patience} seconds")
            if ticks == self.patience and self.rank == 0 and len(self.heard) < self.world_size - 1:
                write("warning: the watchdog does not hear all processes (UDP); should one hang, the others will wait")
            if self.counting and self.steps == steps:
                still += 1
                if still > max(self.patience, 4 * longest) + (self.rank > 0):  # one speaks for all
                    self.end(f"process {self.rank} has stood still for {still} seconds")
            else:
                longest = max(longest, still) if self.counting else longest
                steps, still = self.steps, 0
            if self.parent not in (None, os.getppid()):
                self.end("the program that launched this run is gone")

    def receive(self) -> None:
        """Takes in a datagram, and answers it if this is the first process."""
        with suppress(OSError):
            message, address = self.socket.recvfrom(64)
            if len(message) != 21 or not secrets.compare_digest(message[:16], self.token):
                return  # not one of ours
            rank = int.from_bytes(message[17:], "big")
            self.heard[rank] = 0
            self.addresses[rank] = address
            if message[16:17] == END:
                self.end("")
            if self.rank == 0:
                self.send(BEAT, rank)

    def send(self, kind: bytes, *ranks: int) -> None:
        """Sends a datagram to some processes; to all that have an address if none is named."""
        for rank in ranks or self.addresses:
            with suppress(OSError):
                self.socket.sendto(self.token + kind + self.rank.to_bytes(4, "big"), self.addresses[rank])

    def end(self, reason: str, status: int = 1) -> None:
        """Ends the run: the processes of this machine at once, those of others by a datagram."""
        try:
            if reason:
                way_on = "; the same command with --ckpt_path last goes on" if self.saved else ""
                write(f"error: {reason}: ended all processes of this run{way_on}")
            self.send(END)
            for pid in self.family:
                with suppress(OSError):
                    os.kill(pid, KILL)
        finally:
            os._exit(status)

    def stop(self) -> None:
        """Stops watching."""
        if self.thread is not None:
            self.stopped.set()
            with suppress(OSError):
                self.wake.send(b"\0")
            self.thread.join()
            if self.wakeup_fd is not None:
                signal.set_wakeup_fd(self.wakeup_fd)
            for each in (self.socket, self.signals, self.wake):
                each.close()
            self.thread = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops once all processes have come here."""
        if self.thread is not None:
            trainer.strategy.barrier("watchdog")
            self.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the launched processes along; where another process is the cause, its trace says nothing."""
        if self.thread is not None and (isinstance(exception, DistError) or "/gloo/" in str(exception)):
            self.end("lost touch with another process")
        self.stop()  # the others will miss this one, unless the same happens to them
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(KILL)

    def count(self, *_: Any) -> None:
        """Counts a step, of training, validation or test."""
        if self.thread is not None:
            self.steps += 1
            self.counting = True

    on_train_batch_end = on_validation_batch_end = count  # type: ignore[assignment]
    on_validation_end = on_test_batch_end = count  # type: ignore[assignment]

    def on_train_batch_start(self, *_: Any) -> None:
        """Expects the end of a step, of the first one at any time."""
        self.counting = self.thread is not None and self.steps > 0

    def pause(self, *_: Any) -> None:
        """Expects no step until the next one begins."""
        self.counting = False

    on_train_end = on_test_end = pause  # type: ignore[assignment]

    def on_save_checkpoint(self, *_: Any) -> None:
        """A disk may be slow."""
        self.saved = True
        self.pause()


def write(line: str) -> None:
    """Writes a line to stderr past all that the main thread may hold."""
    show_cursor = "\033[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    with suppress(OSError):
        os.write(2, f"{show_cursor}{line}\n".encode())


def in_main_thread() -> bool:
    """The only thread that may change how signals are handled."""
    return threading.current_thread() is threading.main_thread()


def open_socket(address: str, listen: bool) -> tuple[socket.socket, Any]:
    """Opens a socket for datagrams to or at an address; gives it and the address as the system writes it."""
    family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)[0]
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.setblocking(False)
    if listen:
        # Not every machine knows itself by the address that others have of it.
        alone = address in ("localhost", "127.0.0.1", "::1")
        opened.bind(place if alone else ("", 0))
    return opened, place


def machine() -> tuple[Any, ...]:
    """What tells one machine from another, or rather one table of process ids."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and namespace.exists():
        return boot.read_text(), namespace.stat().st_ino
    return platform.node(), uuid.getnode()
