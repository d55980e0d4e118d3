"""Ends a run on several devices as a whole when one of its processes dies, hangs or is told to stop."""

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


class Watchdog(Callback):
    """Ends all processes of a run soon after one of them is lost, so that none waits for it forever.

    Left alone, the others wait in their next exchange of gradients: for half an hour, or without end.

    A thread in each process exchanges a datagram a second with the first process. A run ends when a process has been
    silent for `patience` seconds; when its training has stood still for so long, and four times as long as ever before;
    when the program that launched it is gone; or on SIGTERM and SIGINT, which Lightning would answer with an exchange
    between processes that may never come about. Whoever notices says one line and takes the processes of its machine
    with it; checkpoints stay.

    Args:
        patience: seconds of silence.
    """

    def __init__(self, patience: int = 6) -> None:
        self.patience = patience
        self.steps = 0  # counted by the main thread, watched by the other
        self.thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the processes known to each other, and starts to watch."""
        if trainer.world_size == 1 or self.thread is not None:
            return
        self.rank, self.stage = trainer.global_rank, stage
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
        # Whoever launches the others has a parent that may well leave, such as the shell under nohup.
        launches = bool(getattr(trainer.strategy.launcher, "procs", None))
        self.parent = None if launches else os.getppid()
        # Lightning's own way with a scheduler's signal is for whoever sets it to one of these.
        self.ends = {signal.SIGTERM, signal.SIGINT} - {getattr(environment, "requeue_signal", None)}
        self.signals, wake = socket.socketpair()
        wake.setblocking(False)
        self.wake = wake
        if in_main_thread():
            # Python runs handlers in the main thread, which may be stuck in an exchange; the descriptor gets the
            # signal's number at once.
            signal.set_wakeup_fd(wake.fileno())
            for number in self.ends:
                signal.signal(number, lambda *_: None)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True, name="watchdog")
        self.thread.start()

    def watch(self) -> None:
        """What the thread does."""
        steps = still = longest = 0
        next_tick = time.monotonic()
        while not self.stop.is_set():
            ready, _, _ = select.select([self.socket, self.signals], [], [], max(0.0, next_tick - time.monotonic()))
            if self.signals in ready:
                number = self.signals.recv(1)[0]
                if number in self.ends:
                    self.end(f"{signal.Signals(number).name}", 128 + number)
            if self.socket in ready:
                self.receive()
            if time.monotonic() < next_tick:
                continue
            # Time is counted in ticks, so that a run that was suspended as a whole goes on when it is woken.
            next_tick = time.monotonic() + 1
            self.send(BEAT)
            for rank in self.heard:
                self.heard[rank] += 1
                if self.heard[rank] > self.patience:
                    self.end(f"process {rank} has been silent for {self.patience} seconds")
            if self.steps != steps:
                steps, still, longest = self.steps, 0, max(longest, still)
            else:
                still += 1
            if steps and still > max(self.patience, 4 * longest):
                self.end(f"process {self.rank} has stood still for {still} seconds")
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
        if reason:
            show_cursor = "\033[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
            way_on = "; fit --ckpt_path last goes on with it" if self.stage == "fit" else ""
            line = f"{show_cursor}error: {reason}: ended all processes of this run{way_on}\n"
            with suppress(OSError):
                os.write(2, line.encode())
        self.send(END)
        for pid in self.family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(status)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops watching once all processes have come here."""
        if self.thread is not None:
            trainer.strategy.barrier("watchdog")
            self.stop.set()
            self.thread.join()
            if in_main_thread():
                signal.set_wakeup_fd(-1)
            for each in (self.socket, self.signals, self.wake):
                each.close()
            self.thread = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the launched processes along; where another process is the cause, its trace says nothing."""
        if self.thread is not None and (isinstance(exception, DistError) or "/gloo/" in str(exception)):
            self.end("lost touch with another process")
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)

    def on_train_batch_end(self, *_: Any) -> None:
        """Counts a step, and so do the others."""
        self.steps += 1

    def on_validation_batch_end(self, *_: Any) -> None:
        self.steps += 1

    def on_validation_end(self, *_: Any) -> None:
        self.steps += 1

    def on_test_batch_end(self, *_: Any) -> None:
        self.steps += 1


def in_main_thread() -> bool:
    """The only thread that may change how signals are handled."""
    return threading.current_thread() is threading.main_thread()


def open_socket(address: str, listen: bool) -> tuple[socket.socket, Any]:
    """Opens a socket for datagrams to or at an address; gives it and the address as the system writes it."""
    family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)[0]
    opened = socket.socket(family, socket.SOCK_DGRAM)
    if listen:
        try:
            opened.bind(place)
        except OSError:  # the machine does not know itself by that address
            opened.bind(("", 0))
    return opened, place


def machine() -> tuple[Any, ...]:
    """What tells one machine from another, or rather one table of process ids."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and namespace.exists():
        return boot.read_text(), namespace.stat().st_ino
    return platform.node(), uuid.getnode()
