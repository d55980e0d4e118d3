import itertools
import math
import re
from functools import partial
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console

from makemore_pl import MLP, NamesDataModule, callbacks, optimization
from makemore_pl.callbacks import Progress, StopNotFinite
from makemore_pl.checkpoints import RunCheckpoint, WholeCheckpoints, read

SGD = {"optimizer": "sgd", "lr": 0.1}
BATCHES = {"batch_size": 50, "steps_per_epoch": 4}
BLOCKS = BATCHES | {"steps_per_execution": 2, "replacement": True}


def fit(*callbacks, data=BATCHES, **options):
    quiet = {"logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(accelerator="cpu", callbacks=[*callbacks], plugins=[WholeCheckpoints()], **quiet | options)
    trainer.fit(MLP(hidden_size=8, **SGD if data is BLOCKS else {}), NamesDataModule(num_words=50, **data))


# Progress.


@pytest.fixture
def clock(monkeypatch):
    """Says that a second has passed whenever it is asked."""
    ticks = itertools.count()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.mark.parametrize(
    ("data", "limit", "first"),
    [(BATCHES, {"max_steps": 40}, 1), (BLOCKS, {"max_epochs": 10}, 2)],
    ids=["updates", "blocks"],
)
def test_progress_on_a_pipe_is_lines_of_updates_on_stderr(data, limit, first, clock, capsys):
    fit(Progress(), data=data, enable_checkpointing=False, **limit)
    out, err = capsys.readouterr()
    assert out == ""
    start, *lines = [line for line in err.split("\n") if line.startswith("update ")]
    assert re.fullmatch(rf"update {first}/40  train \d\.\d{{4}}  \d+ updates/s", start)
    assert all(re.fullmatch(r"update \d+/40  train \d\.\d{4}  val \d\.\d{4}  [\d,]+ updates/s", line) for line in lines)
    # At most one line in five of the clock's seconds, and one at the end: the ten validations have fewer.
    assert 2 <= len(lines) < 10
    assert lines[-1].startswith("update 40/40")


def test_progress_on_a_terminal_is_a_bar_that_ends(clock, monkeypatch):
    progress, screen = Progress(), StringIO()
    monkeypatch.setattr(
        callbacks, "Console", lambda stderr: partial(Console, file=screen, force_terminal=True, width=80)()
    )
    fit(progress, enable_checkpointing=False, max_steps=10)
    assert re.search(r"10/10.*train \d\.\d{4}  val \d\.\d{4}  [\d,]+ updates/s", screen.getvalue())
    assert screen.getvalue().endswith("\x1b[?25h")  # the cursor is there again


# A loss that is not finite.


@pytest.mark.parametrize(
    ("update", "data", "options"),
    [
        (5, BATCHES, {}),
        (7, BATCHES, {}),  # the last one of an epoch: only the validation shows it
        (7, BATCHES, {"precision": "64-true"}),
        (5, BATCHES, {"precision": "bf16-mixed"}),
        (5, BATCHES, {"limit_val_batches": 0}),
        (7, BLOCKS, {}),
    ],
)
def test_weights_that_are_no_numbers_are_not_saved(update, data, options, tmp_path, monkeypatch):
    """Those that are left by an update at a learning rate that is none."""
    monkeypatch.setattr(optimization, "lr_factor", lambda name, step, steps: math.nan if step == update else 0.3)
    validates = "limit_val_batches" not in options
    saving = [RunCheckpoint(tmp_path, "best", "val/loss")] * validates
    saving += [RunCheckpoint(tmp_path, "last", validates=validates)]
    with pytest.raises(ValueError, match=r"/loss is nan after \d+ updates; try a smaller --model.lr"):
        fit(StopNotFinite(), *saving, data=data, max_epochs=9, enable_progress_bar=False, **options)
    for path in tmp_path.iterdir():
        assert all(tensor.isfinite().all() for tensor in read(path)["state_dict"].values()), path.name
    assert read(tmp_path / "last.ckpt")["global_step"] == (2 if data is BLOCKS else 4)


# Threads.


@pytest.fixture
def threads(monkeypatch):
    """Gives the numbers of threads that training steps have, on a machine of three cores."""
    before, seen, step = torch.get_num_threads(), set(), MLP.training_step
    monkeypatch.setattr(callbacks, "MOST", 3)
    monkeypatch.setattr(MLP, "training_step", lambda *a: seen.add(torch.get_num_threads()) or step(*a))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield seen
    torch.set_num_threads(before)


# Rows of an update times parameters, by hand: 5,439 x 11,897 = 65 million; 32 x 11,897; 5,439 x 62,891 = 342 million.
@pytest.mark.parametrize(
    ("recipe", "asked", "expected"), [("quick", 0, 1), ("lecture", 0, 1), ("wide", 0, 3), ("wide", 2, 2)]
)
def test_all_threads_share_what_is_large_unless_a_number_is_asked_for(
    recipe, asked, expected, threads, call, folder, monkeypatch
):
    if asked:
        torch.set_num_threads(asked)  # as torch itself does when it is imported
        monkeypatch.setenv("OMP_NUM_THREADS", str(asked))
    short = ["--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1, "--trainer.max_steps", -1]
    status, _, err = call("fit", "--config", recipe, *short, "--pictures", "false")
    assert status == 0, err
    assert threads == {expected}
