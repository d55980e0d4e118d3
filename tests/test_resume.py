"""A run resumes from any of its checkpoints as if it had not stopped: stock Lightning, and a loader without state."""

import contextlib
import csv
import hashlib
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from makemore_pl import MLP, NamesDataModule
from makemore_pl.checkpoint import load
from makemore_pl.commands.callbacks import StopNotFinite
from makemore_pl.durable.checkpoints import RunCheckpoint, WholeCheckpoints
from makemore_pl.durable.interruption import Interruption

warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")

LENGTHS = {
    "steps": {"max_steps": 34},
    "epochs": {"max_epochs": 3},
    "both": {"max_steps": 34, "max_epochs": 10},
    "every two epochs": {"max_steps": 44, "check_val_every_n_epoch": 2},
    "half an epoch": {"max_steps": 34, "val_check_interval": 0.5},
    "every four batches": {"max_steps": 34, "val_check_interval": 4, "check_val_every_n_epoch": None},
    "cut short": {"max_steps": 34, "limit_train_batches": 3},
    "without validation": {"max_steps": 34, "limit_val_batches": 0},
}
DATA = {
    "counted": {"steps_per_epoch": 11},
    "minibatches": {"batch_size": 16, "steps_per_epoch": 11},  # a pass takes 17
    "passes": {"batch_size": 50},  # an epoch is a pass, of six batches
    "replacement": {"batch_size": 16, "replacement": True, "steps_per_epoch": 11},
}
BLOCKS = {"plain": {}, "blocks": {"steps_per_execution": 4}}
MODELS = {"adamw": {}, "sgd": {"optimizer": "sgd", "lr": 0.1, "schedule": "halfway"}}


pytestmark = pytest.mark.usefixtures("one_thread")


class Witness(Callback):
    """Keeps the digest of the batch of each update."""

    def __init__(self):
        self.batches = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        blocks = zip(*batch, strict=True) if not pl_module.automatic_optimization else [batch]
        first = trainer.global_step * trainer.accumulate_grad_batches
        for update, tensors in enumerate(blocks, first):
            content = b"".join(tensor.numpy().tobytes() for tensor in tensors)
            self.batches.setdefault(update, []).append(hashlib.sha256(content).hexdigest())


class Keep(WholeCheckpoints):
    """Keeps a copy of every checkpoint that was ever there."""

    def __init__(self, folder):
        self.folder = folder

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, path, storage_options)
        shutil.copy(path, self.folder / f"{len(list(self.folder.iterdir())):03}.ckpt")


def flat(state, path=""):
    """All that is in a checkpoint, by its path; tensors as their bytes."""
    if isinstance(state, dict):
        return {k: v for key in state for k, v in flat(state[key], f"{path}.{key}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for i, each in enumerate(state) for k, v in flat(each, f"{path}[{i}]").items()}
    if isinstance(state, torch.Tensor):
        return {path: (state.dtype, tuple(state.shape), state.flatten().view(torch.uint8).numpy().tobytes())}
    return {path: state}


def fit(folder, model, data, options, callbacks=(), keep=None, ckpt_path=None, precision="32-true"):
    """Returns all of the last checkpoint, the batches, and the rows of the log."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoints").mkdir(parents=True)
    checkpoints = RunCheckpoint("best", monitor="val/loss"), RunCheckpoint("last")
    for checkpoint in checkpoints:
        checkpoint.dirpath = str(folder / "checkpoints")
    witness = Witness()
    blocks = data.get("steps_per_execution", 1) > 1
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, ""),
        callbacks=[
            *callbacks,
            *([] if blocks else [LearningRateMonitor("step")]),
            *(witness, StopNotFinite(), *checkpoints, Interruption(*checkpoints)),
        ],
        plugins=[WholeCheckpoints() if keep is None else Keep(keep)],
        log_every_n_steps=1 if blocks else 5,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        precision=precision,
        **options,
    )
    module, names = MLP(hidden_size=8, **model), NamesDataModule(num_words=60, **data)
    with contextlib.suppress(SystemExit):
        trainer.fit(module, names, ckpt_path=ckpt_path, weights_only=True)
    path, log = folder / "checkpoints" / "last.ckpt", folder / "version_0" / "metrics.csv"
    rows = csv.DictReader(io.StringIO(log.read_text())) if log.exists() else []
    log = {tuple(sorted((key, value) for key, value in row.items() if value)) for row in rows}
    return flat(load(path)) if path.exists() else None, witness.batches, log


def compare(whole, resumed, at, blocks):
    """Holds a resumed run against one that never stopped, from update `at` on."""
    (state, batches, log), (their_state, their_batches, their_log) = whole, resumed
    if their_state is None:  # it was saved with its last step
        assert at == state[".global_step"]
        return
    different = {key for key in state.keys() | their_state.keys() if state.get(key) != their_state.get(key)}
    assert not different
    assert their_batches == {update: seen for update, seen in batches.items() if update >= at}
    # After N steps Lightning logs under N - 1, a block under N.
    first = at + (blocks == "blocks")
    later = {row for row in log if int(dict(row)["step"]) >= first}
    assert {row for row in their_log if int(dict(row)["step"]) >= first} == later


def cases():
    """A selection; every single choice occurs, and most pairs."""
    combinations = list(itertools.product(MODELS, DATA, BLOCKS, LENGTHS))
    return [each for number, each in enumerate(combinations) if number % 6 == (number // 16) % 6]


@pytest.mark.parametrize(("model", "data", "blocks", "length"), cases())
def test_from_each_of_our_checkpoints(model, data, blocks, length, tmp_path):
    arguments = tmp_path / "run", MODELS[model], DATA[data] | BLOCKS[blocks], LENGTHS[length]
    (tmp_path / "kept").mkdir()
    whole = fit(*arguments, keep=tmp_path / "kept")
    updates = sorted(whole[1])
    assert updates == list(range(len(updates)))
    assert {len(seen) for seen in whole[1].values()} == {1}
    kept = sorted((tmp_path / "kept").iterdir())
    for path in kept[:-2]:  # those of the end are of a finished run
        at = load(path)["global_step"]
        compare(whole, fit(*arguments, ckpt_path=path), at, blocks)


class Signal(Callback):
    """Sends a signal during the batch, or the block, of an update."""

    def __init__(self, update):
        self.update = update

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        updates = 1 if pl_module.automatic_optimization else len(batch[0])
        if trainer.global_step <= self.update < trainer.global_step + updates:
            os.kill(os.getpid(), signal.SIGTERM)


STOPPED = [
    ("adamw", "counted", "plain"),
    ("sgd", "minibatches", "plain"),
    ("adamw", "minibatches", "blocks"),
    ("sgd", "replacement", "blocks"),
]
STOPS = itertools.cycle([2, 10, 13, 21, 24])


@pytest.mark.parametrize(
    ("step", "model", "data", "blocks", "length"),
    [
        (next(STOPS), *case, length)
        for case in STOPPED
        for length in (
            "steps",
            "epochs",
            "every two epochs",
            "every four batches",
            "half an epoch",
            "without validation",
        )
    ],
)
def test_after_a_signal_anywhere(step, model, data, blocks, length, tmp_path):
    arguments = tmp_path / "run", MODELS[model], DATA[data] | BLOCKS[blocks], LENGTHS[length]
    whole = fit(*arguments)
    stopped = fit(*arguments, callbacks=[Signal(step)])
    at = stopped[0][".global_step"]
    assert step < at < step + 9
    shutil.copy(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "stopped.ckpt")
    resumed = fit(*arguments, ckpt_path=tmp_path / "stopped.ckpt")
    compare(whole, resumed, at, blocks)
    assert stopped[2] | resumed[2] >= whole[2]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1, which Windows has not")
def test_a_requeued_job_resumes_on_request(call, tmp_path, monkeypatch):
    """Lightning's own requeue: SIGUSR1 saves, and calls scontrol; SLURM then kills the job and starts it again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> scontrol.log\n')
    (tmp_path / "scontrol").chmod(0o700)
    variables = {"JOB_ID": 17, "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    slurm = {f"SLURM_{name}": str(value) for name, value in variables.items()}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    flags = ["--data.num_words", "50", "--model.hidden_size", "8", "--model.schedule", "constant"]
    line = [sys.executable, "-m", "makemore_pl", "fit", *flags, "--trainer.max_steps", "1000000"]
    run = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
    try:
        while not (run / "last.ckpt").exists():
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        while not (tmp_path / "scontrol.log").exists():
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        job.send_signal(signal.SIGSTOP)  # or it would validate, and `last` be newer again
    finally:
        job.kill()
        job.wait()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 17\n"
    requeued = run / "hpc_ckpt_1.ckpt"
    os.utime(requeued, (time.time() + 1,) * 2)
    step = load(requeued)["global_step"]
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    status, _, err = call("fit", *flags, "--trainer.max_steps", 2)
    assert (status, "resuming" in err) == (0, False), err
    shutil.rmtree(tmp_path / "lightning_logs" / "version_1")
    status, _, err = call("fit", "--ckpt_path", "last", *flags, "--trainer.max_steps", step + 3)
    assert status == 0, err
    assert f"resuming {requeued.relative_to(tmp_path)}, step {step:,}\n" in err
    assert load(run / "last.ckpt")["global_step"] == step + 3
