"""Runs of the command line in forked processes, which need no imports, and what `torture.py` compares of them."""

import hashlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from makemore_pl.commands import cli
from makemore_pl.datamodule import NamesDataModule

CHECKPOINTS = Path("lightning_logs", "version_0", "checkpoints")
LAST, BEST = CHECKPOINTS / "last.ckpt", CHECKPOINTS / "best.ckpt"

QUIET = "--trainer.accelerator cpu --trainer.enable_progress_bar false"
SMALL = f"{QUIET} --data.num_words 20 --model.hidden_size 8 --pictures false"
TOY = f"{SMALL} --trainer.log_every_n_steps 3 --trainer.max_epochs 3"
MINIBATCH, BLOCKS = "--data.batch_size 16", "--data.batch_size 16 --data.steps_per_execution 3"
BY_STEP = "--trainer.val_check_interval 4 --trainer.check_val_every_n_epoch null"
SGD = "--data.replacement true --model.optimizer sgd --model.lr 0.1"
RECIPES = {
    "counted": "--data.steps_per_epoch 5",
    "counted, in blocks": "--data.steps_per_epoch 5 --data.steps_per_execution 2",
    "minibatch": MINIBATCH,
    "minibatch, by step": f"{MINIBATCH} {BY_STEP}",
    "epochs that are no passes": f"{MINIBATCH} --data.steps_per_epoch 5",
    "blocks": BLOCKS,
    "blocks, replacement, sgd": f"{BLOCKS} {SGD}",
    "replacement, sgd": f"{MINIBATCH} {SGD}",
    "accumulation": f"{MINIBATCH} --trainer.accumulate_grad_batches 3",
    "epochs cut short": f"{MINIBATCH} --trainer.limit_train_batches 4",
    "half epochs": f"{MINIBATCH} --trainer.val_check_interval 0.5",
}


class Witness:
    """Writes down every batch of a training, and kills the process at one of them."""

    def __init__(self, path, kill_at=None):
        self.path, self.kill_at = path, kill_at
        self.train_dataloader = NamesDataModule.train_dataloader
        NamesDataModule.train_dataloader = lambda data: self.watch(self.train_dataloader(data))

    def watch(self, loader):
        batch, block = loader.batch, loader.block

        def note(first, batches):
            if self.kill_at is not None and first <= self.kill_at < first + len(batches):
                os.kill(os.getpid(), signal.SIGKILL)
            with self.path.open("a") as file:
                for number, X in enumerate(batches, first):
                    file.write(f"{number} {hashlib.sha256(X.numpy().tobytes()).hexdigest()[:16]}\n")

        def watched_batch(number):
            found = batch(number)
            note(number, found[:1])
            return found

        def watched_block(first, size):
            found = block(first, size)
            note(first, found[0])
            return found

        loader.batch, loader.block = watched_batch, watched_block
        return loader


def forked(work, folder, *arguments):
    """Does some work in a process of its own, in a folder; gives the process and when it began."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(folder)
            log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            work(*arguments)
            status = 0
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child, begin


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fit(flags, kill_at=None, resume=False):
    Witness(Path("batches"), kill_at)
    sys.argv = ["makemore_pl", "fit", *flags.split(), *(["--ckpt_path", "last"] if resume else [])]
    cli.main()


def command(line, out=None, environment=None):
    """Runs a command line; its stdout goes to a file."""
    os.environ |= environment or {}
    if out is not None:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    sys.argv = ["makemore_pl", *map(str, line)]
    cli.main()


def done(folder, *line, out=None, environment=None):
    """Runs a command line to its end; gives the exit status and what it said."""
    log = folder / "log"
    before = log.stat().st_size if log.exists() else 0
    status = wait(forked(command, folder, line, out, environment)[0])
    return status, log.read_bytes()[before:].decode()


def flat(state, path=""):
    """All that is in a checkpoint, one line each."""
    if isinstance(state, dict):
        for key in sorted(state, key=str):
            yield from flat(state[key], f"{path}.{key}")
    elif isinstance(state, (list, tuple)):
        for index, each in enumerate(state):
            yield from flat(each, f"{path}[{index}]")
    elif isinstance(state, torch.Tensor):
        content = hashlib.sha256(state.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        yield f"{path} {state.dtype} {tuple(state.shape)} {content}"
    else:
        yield f"{path} {state!r}"


def digest(path):
    """SHA-256 over parameters, optimizer, schedule, counters and best scores."""
    lines = flat(torch.load(path, weights_only=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def files(folder):
    """The content of every file of a folder, by its path; the log of this test apart."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path != folder / "log")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
