"""Trains on two processes, hurts some of them, and writes down how the run ends: run by test_watchdog.py.

Runs are forked from here, so that none has to import anything, and go on side by side, since most of them only wait.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from makemore_pl import MLP, NamesDataModule
from makemore_pl.watchdog import Watchdog

CASES = [
    *[(name, whom) for name in ("SIGKILL", "SIGTERM", "SIGINT") for whom in ("0", "1", "all", "launcher")],
    *[(name, whom) for name in ("SIGSTOP", "sleep", "error") for whom in ("0", "1")],
]
AT_ONCE = 6
LIMIT = 20  # seconds; the promise is ten, on a machine with less to do


class Patient(Callback):
    """Says which process this is, and falls ill at the step after the first checkpoint if it is told to."""

    def __init__(self, folder, ill):
        self.folder, self.ill = folder, ill

    def on_train_start(self, trainer, pl_module):
        (self.folder / f"{trainer.global_rank}.pid").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if str(trainer.global_rank) in self.ill and (self.folder / "go").exists():
            if "sleep" in self.ill:
                time.sleep(1000)
            raise RuntimeError("ill")


def launch(folder, fault, whom):
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    data = NamesDataModule(num_words=100)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_steps=10**6,
        val_check_interval=10,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[Watchdog(), Patient(folder, (fault, whom)), ModelCheckpoint(folder, "last")],
    )
    trainer.fit(MLP(data.vocabulary.characters, hidden_size=8, schedule="constant"), data)


def alive(pid):
    """A zombie is not; nor is there anything to see of one that was reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def hurt(folder, fault, whom):
    """Gives the exit status, the seconds to the end, what is left of the run, and what it said."""
    launcher = os.fork()
    if launcher == 0:
        try:
            launch(folder, fault, whom)
        finally:
            os._exit(1)
    paths = [folder / "0.pid", folder / "1.pid"]
    while not (folder / "last.ckpt").exists() or not all(path.exists() and path.read_text() for path in paths):
        time.sleep(0.05)
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
    seconds = time.monotonic() - begin
    left = [pid for pid in [launcher, *ranks] if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    step = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    return {"status": status, "seconds": seconds, "left": left, "step": step, "said": (folder / "log").read_text()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for number, (fault, whom) in enumerate(CASES):
        if number >= AT_ONCE:
            os.wait()
        if os.fork() == 0:
            try:
                folder = root / f"{fault} {whom}"
                folder.mkdir()
                (folder / "result.json").write_text(json.dumps(hurt(folder, fault, whom)))
            finally:
                os._exit(0)
    for _ in range(AT_ONCE):
        os.wait()
