"""Trains on two processes, damages some of them, and records how the run ends: started by test_watchdog.py.

The processes are forked, so that they import nothing again, and the runs are concurrent, since most of them only wait.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from makemore_pl import MLP, NamesDataModule, Sampler
from makemore_pl.durable.watchdog import Watchdog

CASES = [
    *[(name, whom) for name in ("SIGKILL", "SIGTERM", "SIGINT") for whom in ("0", "1", "all", "launcher")],
    *[(name, whom) for name in ("SIGSTOP", "sleep", "error") for whom in ("0", "1")],
]
HEALTHY = ["slow first step", "slow checkpoint", "slow end", "slow predict", "caught", "parent gone"]
SLOW = 9  # seconds, more than the watchdog's patience
TICKS = 3  # seconds in which it looks a few times, and too few to lose patience
AT_ONCE = 6
LIMIT = 120  # seconds until a run counts as one that does not end; the promise is ten, on a quiet machine
START = 180  # seconds in which six concurrent runs must start, and the healthy ones end


class Patient(Callback):
    """Records the process id; if the process is named in `ill`, fails at the step after the first checkpoint."""

    def __init__(self, folder, ill):
        self.folder, self.ill = folder, ill

    def on_train_start(self, trainer, pl_module):
        (self.folder / f"{trainer.global_rank}.pid").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if str(trainer.global_rank) in self.ill and (self.folder / "go").exists():
            if "sleep" in self.ill:
                time.sleep(1000)
            raise RuntimeError("ill")


def train(folder, *callbacks, **options):
    data = NamesDataModule(num_words=100, steps_per_epoch=10)
    model = MLP(data.vocabulary.characters, hidden_size=8, schedule="constant")
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[Watchdog(), *callbacks, ModelCheckpoint(folder, "last")],
        **options,
    )
    trainer.fit(model, data)
    return trainer, model


def say_into(folder):
    """Starts a session, whose processes can be ended together, with its output in a file."""
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)


class Slow(Callback):
    """Sleeps in one process."""

    def __init__(self, when):
        self.when, self.parent = when, os.getppid()

    def wait(self, trainer, when):
        if self.when == when and trainer.is_global_zero:
            self.when = None
            time.sleep(SLOW)

    def on_train_batch_start(self, trainer, *_):
        self.wait(trainer, "slow first step")
        if self.when == "caught" and trainer.global_step == 5:
            raise ValueError("caught")
        if self.when == "parent gone" and trainer.global_step == 15:
            while os.getppid() == self.parent:  # which leaves after the first checkpoint, at step 10
                time.sleep(0.05)
            time.sleep(TICKS)

    def on_save_checkpoint(self, trainer, *_):
        self.wait(trainer, "slow checkpoint")

    def on_fit_end(self, trainer, *_):
        self.wait(trainer, "slow end")

    def on_predict_batch_start(self, trainer, *_):
        self.wait(trainer, "slow predict")


def work_in_peace(folder, case, rank, port):
    """Runs one of two healthy processes, which nothing has launched."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in where.items()}
    try:
        trainer, model = train(folder, Slow(case), strategy="ddp", max_steps=30)
        trainer.predict(model, Sampler(5), return_predictions=False)
    except ValueError:
        time.sleep(SLOW)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    (folder / f"{rank}.done").touch()


def live(folder, case):
    """Returns how many of the two processes finished, and their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parent = os.fork()
    if parent == 0:
        say_into(folder)
        ranks = []
        for rank in (0, 1):
            ranks.append(os.fork())
            if ranks[-1] == 0:
                try:
                    work_in_peace(folder, case, rank, port)
                except BaseException:
                    traceback.print_exc()
                os._exit(0)
        if case == "parent gone":
            while not (folder / "last.ckpt").exists():
                time.sleep(0.05)
        else:
            os.wait(), os.wait()
        os._exit(0)
    deadline = time.monotonic() + START
    while len(list(folder.glob("*.done"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        if (folder / "log").exists() and not leads(parent):
            break
    time.sleep(0.5)
    with suppress(ProcessLookupError):
        os.killpg(parent, signal.SIGKILL)
    return {"done": len(list(folder.glob("*.done"))), "said": (folder / "log").read_text()}


def leads(group):
    """Whether a session still has processes."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def launch(folder, fault, whom):
    say_into(folder)
    train(folder, Patient(folder, (fault, whom)), strategy="ddp_fork", max_steps=10**6)


def alive(pid):
    """Whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def hurt(folder, fault, whom):
    """Returns the exit status, the processes that are left, the step of the checkpoint, and the output."""
    launcher = os.fork()
    if launcher == 0:
        try:
            launch(folder, fault, whom)
        finally:
            os._exit(1)
    paths = [folder / "0.pid", folder / "1.pid"]
    deadline = time.monotonic() + START
    while not (folder / "last.ckpt").exists() or not all(path.exists() and path.read_text() for path in paths):
        time.sleep(0.05)
        if time.monotonic() > deadline:
            os.killpg(launcher, signal.SIGKILL)
            return {"status": 0, "left": [], "step": 0, "said": (folder / "log").read_text()}
    ranks = [int(path.read_text()) for path in paths]
    (folder / "go").touch()
    begin = time.monotonic()
    if fault.startswith("SIG"):
        for pid in {"0": ranks[:1], "1": ranks[1:], "all": ranks, "launcher": [launcher]}[whom]:
            os.kill(pid, getattr(signal, fault))
    status = None
    while time.monotonic() - begin < LIMIT and (status is None or any(map(alive, ranks))):
        time.sleep(0.05)
        pid, code = os.waitpid(launcher, os.WNOHANG) if status is None else (0, 0)
        status = os.waitstatus_to_exitcode(code) if pid else status
    left = [pid for pid in [launcher, *ranks] if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    step = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    return {"status": status, "left": left, "step": step, "said": (folder / "log").read_text()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for number, case in enumerate([*CASES, *HEALTHY]):
        if number >= AT_ONCE:
            os.wait()
        if os.fork() == 0:
            try:
                folder = root / (case if case in HEALTHY else " ".join(case))
                folder.mkdir()
                result = live(folder, case) if case in HEALTHY else hurt(folder, *case)
                (folder / "result.json").write_text(json.dumps(result))
            finally:
                os._exit(0)
    for _ in range(AT_ONCE):
        os.wait()
