"""Signals in one process; `torture.py` sends them in all phases of a run, and counts lost steps."""

import os
import signal
import time

import pytest
import torch
from lightning.pytorch import Trainer

from makemore_pl import MLP, NamesDataModule
from makemore_pl.durable import interruption
from makemore_pl.durable.checkpoints import RunCheckpoint, RunFolder
from makemore_pl.durable.interruption import Interruption, ending_quietly


def fit(folder, *callbacks, logger=False):
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(each, RunCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=50,
        default_root_dir=folder,
    )
    trainer.fit(MLP(hidden_size=8), NamesDataModule(num_words=50, batch_size=16))


def run_checkpoint(folder):
    last = RunCheckpoint("last")
    last.dirpath = str(folder)
    return last


@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_ends_a_training_after_its_step(number, logged, tmp_path, monkeypatch, capfd):
    training_step = MLP.training_step

    def send(self, batch, batch_idx):
        if self.trainer.global_step == 9:
            os.kill(os.getpid(), number)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(MLP, "training_step", send)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit:
        logger = RunFolder(tmp_path, "lightning_logs") if logged else False
        last = run_checkpoint(tmp_path)
        fit(tmp_path, Interruption(last), last, logger=logger)
    assert exit.value.code == 128 + number
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 10
    name = signal.Signals(number).name
    assert capfd.readouterr().err == (
        f"stopped by {name} after step 10; the same command with --ckpt_path "
        f"{'last' if logged else os.path.relpath(tmp_path / 'last.ckpt')} resumes\n"
    )
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_a_signal_after_the_last_step_is_not_forgotten(hook, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(MLP, hook, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as exit, ending_quietly():
        fit(tmp_path, Interruption())
    assert exit.value.code == 143
    assert capfd.readouterr().err in ("stopped by SIGTERM after step 50\n", "")


def test_what_was_never_validated_is_saved_before_the_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(MLP, "validation_step", None)
    monkeypatch.setattr(MLP, "on_train_end", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    last = run_checkpoint(tmp_path)
    with pytest.raises(SystemExit) as exit, ending_quietly():
        fit(tmp_path, Interruption(last), last)
    assert exit.value.code == 143
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 50
    assert capfd.readouterr().err.startswith("stopped by SIGTERM after step 50; the same command")


def test_a_run_that_fails_after_a_signal_is_not_ended_once_more(tmp_path, monkeypatch):
    def fail(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("a mistake")

    monkeypatch.setattr(MLP, "training_step", fail)
    callback = Interruption()
    with pytest.raises(ValueError, match="a mistake"), ending_quietly():
        fit(tmp_path, callback)
    assert (callback.number, interruption.last_words) == (None, [])


def test_what_takes_too_long_is_given_up(tmp_path, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(interruption, "PATIENCE", 0.1)
    monkeypatch.setattr(interruption.os, "_exit", ended.append)

    def hang(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        while not ended:
            time.sleep(0.01)

    monkeypatch.setattr(MLP, "training_step", hang)
    with pytest.raises(SystemExit), ending_quietly():
        fit(tmp_path, Interruption())
    assert ended == [143]
    assert capfd.readouterr().err.startswith("stopped by SIGTERM before the step finished\n")


@pytest.mark.skipif(os.name == "nt", reason="the quotes are those of a POSIX shell")
def test_the_command_that_resumes_can_be_pasted(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MLP, "on_train_end", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    last = run_checkpoint(tmp_path / "my out\x1b")
    with pytest.raises(SystemExit):
        fit(tmp_path, Interruption(last), last)
    end = "; the same command with --ckpt_path 'my out\\x1b/last.ckpt' resumes\n"
    assert capfd.readouterr().err == f"stopped by SIGTERM after step 50{end}"


def test_a_run_that_is_to_ignore_ctrl_c_does(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        callback = Interruption()
        with ending_quietly():
            fit(tmp_path, callback)
            os.kill(os.getpid(), signal.SIGINT)
            assert callback.number is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_elsewhere_a_signal_ends_the_program_without_a_word(number, capfd):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit, ending_quietly():
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert exit.value.code == 128 + number
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(number) == before
