"""Ends all processes of a run on several devices when one of them dies, hangs or receives a signal to stop."""

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

from makemore_pl.terminal import printable

BEAT, END = b"\0", b"\1"

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""Ends a process at once; on Windows SIGTERM does."""


class Watchdog(Callback):
    """Ends all processes of a run when one of them is lost; otherwise the others would wait for it, without a limit.

    A thread in each process exchanges a datagram a second with the first process. A run ends if a process has been
    silent for `patience` seconds; if its steps have stood still for that long, and four times longer than ever before;
    if the program that launched it has ended; or on SIGTERM and SIGINT, which Lightning would answer with an exchange
    between processes that may never finish. The process that notices it prints one line and ends the processes of its
    machine; checkpoints stay whole. The first step, checkpoints, and the time before and after training have no limit.

    Args:
        patience: seconds of silence, 3 or more.

    Raises:
        ValueError: if patience is below 3.
    """

    def __init__(self, patience: int = 6) -> None:
        if patience < 3:
            raise ValueError(f"patience is {patience}: expected 3 or more seconds, as there is one datagram a second")
        self.patience = patience
        self.thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exchanges addresses and process ids, and starts the thread."""
        if trainer.world_size == 1 or self.thread is not None:
            return
        self.rank, self.world_size = trainer.global_rank, trainer.world_size
        self.steps = 0  # written by the main thread, read by the other
        self.counting = False  # whether a step is under way
        self.saved = False
        self.heard: dict[int, int] = {}  # rank -> ticks since its last datagram
        self.addresses: dict[int, Any] = {}  # rank -> address of its socket
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        self.socket, first = open_socket(environment.main_address, listen=self.rank == 0)
        port = self.socket.getsockname()[1] if self.rank == 0 else None
        this = machine(), os.getpid(), port, secrets.token_bytes(16)
        everyone = [this] * trainer.world_size
        all_gather_object(everyone, this)
        self.family = [pid for where, pid, *_ in everyone if where == this[0] and pid != this[1]]
        _, _, port, self.token = everyone[0]  # other programs cannot know the token
        if self.rank:
            self.addresses[0] = (first[0], port, *first[2:])
        # Only a launcher is watched: another parent, such as a shell under nohup, may end.
        launched = "TORCHELASTIC_RUN_ID" in os.environ or multiprocessing.parent_process() is not None
        self.parent = os.getppid() if launched or os.getppid() in self.family else None
        # A cluster may use one of these to requeue a job, which Lightning handles.
        self.ends = {signal.SIGTERM, signal.SIGINT} - {getattr(environment, "requeue_signal", None)}
        self.signals, self.wake = socket.socketpair()
        self.wake.setblocking(False)
        self.wakeup_fd: int | None = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True, name="watchdog")
        self.thread.start()

    def take_signals(self, *_: Any) -> None:
        """Replaces the handlers that Lightning installs after `on_fit_start` and removes at the end."""
        if self.thread is None or self.wakeup_fd is not None or not in_main_thread():
            return
        # Python runs handlers in the main thread, which may be stuck in an exchange; the descriptor receives the number
        # of the signal at once.
        self.wakeup_fd = signal.set_wakeup_fd(self.wake.fileno())
        for number in self.ends:
            signal.signal(number, lambda *_: None)

    on_train_start = on_validation_start = on_test_start = on_predict_start = take_signals  # type: ignore[assignment]

    def watch(self) -> None:
        """Runs in the thread."""
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
            # Time is counted in ticks, so that a run that was suspended as a whole continues afterwards.
            next_tick = time.monotonic() + 1
            ticks += 1
            self.send(BEAT)
            for rank in self.heard:
                self.heard[rank] += 1
                if self.heard[rank] > self.patience:
                    self.end(f"process {rank} has been silent for {self.patience} seconds")
            if ticks == self.patience and self.rank == 0 and len(self.heard) < self.world_size - 1:
                write("warning: the watchdog receives nothing from some processes (UDP): if one hangs, the run hangs")
            if self.counting and self.steps == steps:
                still += 1
                if still > max(self.patience, 4 * longest) + (self.rank > 0):  # the first process reports first
                    self.end(f"process {self.rank} has stood still for {still} seconds")
            else:
                longest = max(longest, still) if self.counting else longest
                steps, still = self.steps, 0
            if self.parent not in (None, os.getppid()):
                self.end("the program that launched this run has ended")

    def receive(self) -> None:
        """Receives a datagram; the first process answers it."""
        with suppress(OSError):
            message, address = self.socket.recvfrom(64)
            if len(message) != 21 or not secrets.compare_digest(message[:16], self.token):
                return  # from another program
            rank = int.from_bytes(message[17:], "big")
            self.heard[rank] = 0
            self.addresses[rank] = address
            if message[16:17] == END:
                self.end("")
            if self.rank == 0:
                self.send(BEAT, rank)

    def send(self, kind: bytes, *ranks: int) -> None:
        """Sends a datagram to some processes, or to all with a known address."""
        for rank in ranks or self.addresses:
            with suppress(OSError):
                self.socket.sendto(self.token + kind + self.rank.to_bytes(4, "big"), self.addresses[rank])

    def end(self, reason: str, status: int = 1) -> None:
        """Ends the processes of this machine at once, and those of other machines by a datagram."""
        try:
            if reason:
                resume = (
                    "; the same command with --ckpt_path last resumes from the last checkpoint" if self.saved else ""
                )
                write(f"error: {reason}: ended all processes of this run{resume}")
            self.send(END)
            for pid in self.family:
                with suppress(OSError):
                    os.kill(pid, KILL)
        finally:
            os._exit(status)

    def stop(self) -> None:
        """Ends the thread, and closes its sockets."""
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
        """Waits for all processes, and stops."""
        if self.thread is not None:
            trainer.strategy.barrier("watchdog")
            self.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the launched processes too. If the cause is another process, prints a line instead of the trace."""
        if self.thread is not None and (isinstance(exception, DistError) or "/gloo/" in str(exception)):
            self.end("lost the connection to another process")
        self.stop()  # the other processes notice that this one is silent
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(KILL)

    def count(self, *_: Any) -> None:
        """Counts a step of training, validation or test."""
        if self.thread is not None:
            self.steps += 1
            self.counting = True

    on_train_batch_end = on_validation_batch_end = count  # type: ignore[assignment]
    on_validation_end = on_test_batch_end = count  # type: ignore[assignment]

    def on_train_batch_start(self, *_: Any) -> None:
        """Expects the end of this step, unless it is the first, which has no limit."""
        self.counting = self.thread is not None and self.steps > 0

    def pause(self, *_: Any) -> None:
        """Expects nothing until the next step begins."""
        self.counting = False

    on_train_end = on_test_end = pause  # type: ignore[assignment]

    def on_save_checkpoint(self, *_: Any) -> None:
        """Allows a disk any time."""
        self.saved = True
        self.pause()


def write(line: str) -> None:
    """Writes a line to stderr without any lock that the main thread may hold."""
    show_cursor = "\033[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    with suppress(OSError):
        os.write(2, f"{show_cursor}{printable(line)}\n".encode())


def in_main_thread() -> bool:
    """Whether this is the main thread, the only one that may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def open_socket(address: str, listen: bool) -> tuple[socket.socket, Any]:
    """Opens a socket for datagrams to or at an address; returns it and the resolved address."""
    family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)[0]
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.setblocking(False)
    if address in ("localhost", "127.0.0.1", "::1"):
        opened.bind(place)
    elif listen:
        opened.bind(("", 0))  # a machine may not be able to bind the address by which others reach it
    return opened, place


def machine() -> tuple[Any, ...]:
    """Identifies a machine, or rather a table of process ids: containers have their own."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and namespace.exists():
        return boot.read_text(), namespace.stat().st_ino
    return platform.node(), uuid.getnode()
