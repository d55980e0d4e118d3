import io
import itertools
import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from makemore_pl import MLP, NamesDataModule, optimization
from makemore_pl.commands import callbacks
from makemore_pl.commands.callbacks import Progress, StopNotFinite


class Record(Callback):
    def __init__(self):
        self.validated = []

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.global_step)


def fit(folder, *callbacks, model=None, data=None, **options):
    defaults = {"logger": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    defaults |= {"num_sanity_val_steps": 0}
    data = {"num_words": 50, "batch_size": 50, "steps_per_epoch": 4} | (data or {})
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), **defaults | options)
    trainer.fit(MLP(**{"hidden_size": 8} | (model or {})), NamesDataModule(**data))
    return trainer


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        ({"max_steps": 3}, [3]),
        ({"max_steps": 8}, [4, 8]),
        ({"max_steps": 10}, [4, 8, 10]),
        ({"max_epochs": 2, "limit_train_batches": 3}, [3, 6]),
        ({"max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6]),
    ],
)
def test_the_last_step_is_validated(options, validated, tmp_path):
    record = Record()
    fit(tmp_path, record, enable_progress_bar=False, **options)
    assert record.validated == validated


def test_progress_says_lines_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
    ticks = itertools.count()  # of a clock that no machine is too slow for
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1000))
    fit(tmp_path, Progress(), max_steps=10)
    out, err = capsys.readouterr()
    assert out == ""
    first, line = [line for line in err.split("\n") if line.startswith("step ")]
    assert re.fullmatch(r"step 1/10  train \d\.\d{4}  [\d,]+ steps/s", first)
    assert re.fullmatch(r"step 10/10  train \d\.\d{4}  val \d\.\d{4}  [\d,]+ steps/s", line)


def test_progress_draws_a_bar_on_a_terminal(tmp_path, monkeypatch):
    progress, screen = Progress(), io.StringIO()
    terminal = partial(Console, file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(callbacks, "Console", lambda stderr: terminal())
    fit(tmp_path, progress, max_steps=10)
    assert re.search(r"10/10.*train \d\.\d{4}  val \d\.\d{4}  [\d,]+ steps/s", screen.getvalue())
    assert progress.bar is None


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(bad, precision, tmp_path, monkeypatch):
    loss, calls = MLP.loss, []

    def break_at_the_tenth(logits, Y, reduction="mean"):
        if torch.is_grad_enabled():
            calls.append(1)
        return loss(logits, Y, reduction) * (bad if len(calls) == 10 and torch.is_grad_enabled() else 1)

    monkeypatch.setattr(MLP, "loss", staticmethod(break_at_the_tenth))
    last = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    with pytest.raises(ValueError, match=rf"^step 10: the loss is {bad}; try a smaller --model.lr, or"):
        quiet = {"enable_progress_bar": False, "enable_checkpointing": True}
        fit(tmp_path, StopNotFinite(), last, precision=precision, max_steps=30, **quiet)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 8
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


@pytest.fixture
def one_huge_step(monkeypatch):
    """A learning rate that leaves weights that are no numbers, at one step."""

    def at(huge):
        monkeypatch.setattr(optimization, "lr_factor", lambda schedule, step, steps: math.nan if step == huge else 0.3)

    return at


@pytest.mark.parametrize("options", [{"optimizer": "sgd"}, {}])
def test_a_loss_that_is_no_number_is_found_after_its_block(options, one_huge_step, tmp_path):
    """The 30th step leaves weights that are no numbers, so the 31st and all that follow have a loss that is none."""
    one_huge_step(29)
    last = ModelCheckpoint(tmp_path, "last", enable_version_counter=False, save_on_train_epoch_end=False)
    with pytest.raises(ValueError, match=r"^step 35: the loss is nan"):
        fit(
            *(tmp_path, StopNotFinite(), last),
            model=options,
            data={"steps_per_epoch": 25, "steps_per_execution": 10},
            max_steps=100,
            enable_progress_bar=False,
            enable_checkpointing=True,
        )
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 25


def test_weights_that_are_no_numbers_are_not_saved(one_huge_step, tmp_path):
    """The step before the loss shows it: a validation comes between."""
    one_huge_step(7)
    last = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    with pytest.raises(ValueError, match=r"^step 8: the loss is nan"):
        fit(tmp_path, StopNotFinite(), last, max_steps=30, enable_progress_bar=False, enable_checkpointing=True)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
