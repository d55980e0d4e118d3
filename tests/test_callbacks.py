import itertools
import math
import re
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from rich.console import Console

from makemore_pl import MLP, NamesDataModule, callbacks, optimization
from makemore_pl.callbacks import Progress, StopNotFinite, choose_threads
from makemore_pl.checkpoints import RunCheckpoint, WholeCheckpoints, read

SMALL = ["--data.num_words", 60, "--model.hidden_size", 8, "--pictures", "false", "--trainer.accelerator", "cpu"]
BLOCKS = ["--config", "lecture", *SMALL, "--data.steps_per_epoch", 20, "--data.steps_per_execution", 10]


def fit(*callbacks, model=None, data=None, **options):
    quiet = {"logger": False, "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = Trainer(accelerator="cpu", callbacks=[*callbacks], plugins=[WholeCheckpoints()], **quiet | options)
    trainer.fit(
        MLP(**{"hidden_size": 8} | (model or {})),
        NamesDataModule(num_words=50, **data or {"batch_size": 50, "steps_per_epoch": 4}),
    )


# Progress.


@pytest.fixture
def clock(monkeypatch):
    """Says that a second has passed whenever it is asked."""
    ticks = itertools.count()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


def test_progress_on_a_pipe_is_lines_on_stderr(clock, capsys):
    fit(Progress(), max_steps=40)
    out, err = capsys.readouterr()
    assert out == ""
    first, *lines = [line for line in err.split("\n") if line.startswith("update ")]
    assert re.fullmatch(r"update 1/40  train \d\.\d{4}  \d+ updates/s", first)
    assert all(re.fullmatch(r"update \d+/40  train \d\.\d{4}  val \d\.\d{4}  [\d,]+ updates/s", line) for line in lines)
    # At most one line in five of the clock's seconds, and one at the end: the ten validations have fewer.
    assert 2 <= len(lines) < 10
    assert lines[-1].startswith("update 40/40")


@pytest.mark.parametrize(
    ("flags", "total"), [([*SMALL, "--trainer.max_steps", 30], 30), ([*BLOCKS, "--trainer.max_epochs", 3], 60)]
)
def test_progress_counts_updates_also_in_blocks(flags, total, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call("fit", *flags)
    assert status == 0, err
    assert re.findall(rf"update ([\d,]+)/{total} ", err)[-1] == str(total)


def test_progress_on_a_terminal_is_a_bar_that_ends(clock, monkeypatch):
    progress, screen = Progress(), StringIO()
    monkeypatch.setattr(
        callbacks, "Console", lambda stderr: partial(Console, file=screen, force_terminal=True, width=80)()
    )
    fit(progress, max_steps=10)
    assert re.search(r"10/10.*train \d\.\d{4}  val \d\.\d{4}  [\d,]+ updates/s", screen.getvalue())
    assert screen.getvalue().endswith("\x1b[?25h")  # the cursor is there again


# A loss that is not finite.


@pytest.fixture
def bad_rate(monkeypatch):
    """A learning rate that is no number at one update leaves weights that are none."""

    def at(update):
        monkeypatch.setattr(optimization, "lr_factor", lambda name, step, steps: math.nan if step == update else 0.3)

    return at


BATCHES = {"batch_size": 50, "steps_per_epoch": 4}
IN_BLOCKS = {"batch_size": 50, "steps_per_epoch": 4, "steps_per_execution": 2, "replacement": True}


@pytest.mark.parametrize(
    ("update", "data", "model", "options"),
    [
        (5, BATCHES, {}, {"max_steps": 30}),
        (7, BATCHES, {}, {"max_steps": 30}),  # the last one of an epoch: only the validation shows it
        (7, BATCHES, {}, {"max_steps": 30, "precision": "64-true"}),
        (5, BATCHES, {}, {"max_steps": 30, "precision": "bf16-mixed"}),
        (5, BATCHES, {}, {"max_steps": 30, "limit_val_batches": 0}),
        (7, IN_BLOCKS, {"optimizer": "sgd", "lr": 0.1}, {"max_epochs": 9}),
    ],
)
def test_weights_that_are_no_numbers_are_not_saved(update, data, model, options, bad_rate, tmp_path):
    bad_rate(update)
    validates = "limit_val_batches" not in options
    saving = [RunCheckpoint(tmp_path, "best", "val/loss")] * validates
    saving += [RunCheckpoint(tmp_path, "last", validates=validates)]
    with pytest.raises(ValueError, match=r"/loss is nan after \d+ updates; try a smaller --model.lr"):
        fit(
            StopNotFinite(),
            *saving,
            model=model,
            data=data,
            enable_progress_bar=False,
            enable_checkpointing=True,
            **options,
        )
    for path in tmp_path.iterdir():
        assert all(tensor.isfinite().all() for tensor in read(path)["state_dict"].values()), path.name
    assert read(tmp_path / "last.ckpt")["global_step"] == (2 if data is IN_BLOCKS else 4)


# Threads.


@pytest.fixture
def cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(callbacks, "MOST", 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


# Rows of an update times parameters, by hand: 5,439 x 11,897 = 65 million; 32 x 11,897; 5,439 x 62,891 = 342 million.
@pytest.mark.parametrize(("recipe", "expected"), [("quick", 1), ("lecture", 1), ("wide", 3)])
def test_all_threads_share_what_is_large(recipe, expected, cores, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen, step = set(), MLP.training_step
    monkeypatch.setattr(MLP, "training_step", lambda *a: seen.add(torch.get_num_threads()) or step(*a))
    short = ["--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1, "--trainer.max_steps", -1]
    status, _, err = call("fit", "--config", recipe, *short, "--pictures", "false")
    assert status == 0, err
    assert seen == {expected}


def test_a_number_of_threads_that_was_asked_for_stays(cores, monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    choose_threads(0)
    assert torch.get_num_threads() == 2


# The config of a run.


def test_a_config_is_written_after_a_run_is_restored(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("fit", *BLOCKS, "--trainer.max_epochs", 2)[0] == 0
    config = Path("lightning_logs/version_0/config.yaml")
    before = config.read_text()
    more = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", 4]
    status, _, err = call(*more, "--data.steps_per_execution", 5)  # which the checkpoint's counters do not fit
    assert (status, err.splitlines()[-1].startswith("error: ")) == (2, True)
    assert config.read_text() == before
    assert call(*more)[0] == 0
    assert yaml.safe_load(config.read_text())["trainer"]["max_epochs"] == 4
