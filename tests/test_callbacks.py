import itertools
import math
import re
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from makemore_pl import MLP, callbacks, optimization
from makemore_pl.checkpoints import read

pytestmark = pytest.mark.usefixtures("one_thread", "folder")

SMALL = "--data.num_words 50 --data.batch_size 50 --data.steps_per_epoch 4 --model.hidden_size 8"
SMALL += " --trainer.accelerator cpu --trainer.logger false"
BLOCKS = "--data.steps_per_execution 2 --data.replacement true --model.optimizer sgd --model.lr 0.1"


# Progress.


@pytest.fixture
def clock(monkeypatch):
    """Says that a second has passed whenever it is asked."""
    ticks = itertools.count()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.mark.parametrize(("flags", "first"), [("--trainer.max_steps 40", 1), (f"{BLOCKS} --trainer.max_epochs 10", 2)])
def test_progress_on_a_pipe_is_lines_of_updates(flags, first, clock, call):
    status, _, err = call("fit", *SMALL.split(), *flags.split())
    assert status == 0, err
    start, *lines = [line for line in err.split("\n") if line.startswith("update ")]
    assert re.fullmatch(rf"update {first}/40  train \d\.\d{{4}}  \d+ updates/s", start)
    assert all(re.fullmatch(r"update \d+/40  train \d\.\d{4}  val \d\.\d{4}  [\d,]+ updates/s", line) for line in lines)
    # At most one line in five of the clock's seconds, and one at the end: the ten validations have fewer.
    assert 2 <= len(lines) < 10
    assert lines[-1].startswith("update 40/40")


def test_progress_on_a_terminal_is_a_bar_that_ends(clock, call, monkeypatch):
    screen = StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(callbacks, "Console", lambda stderr: terminal)
    assert call("fit", *SMALL.split(), "--trainer.max_steps", 10)[0] == 0
    assert re.search(r"10/10.*train \d\.\d{4}  val \d\.\d{4}  [\d,]+ updates/s", screen.getvalue())
    assert screen.getvalue().endswith("\x1b[?25h")  # the cursor is there again


# A loss that is not finite.


@pytest.mark.parametrize(
    ("update", "flags", "saved"),
    [
        (5, "--trainer.precision bf16-mixed", 4),
        (7, "", 4),  # the last one of an epoch: only the validation shows it
        (5, "--trainer.limit_val_batches 0", 4),
        (7, BLOCKS, 2),  # steps of two updates
    ],
)
def test_weights_that_are_no_numbers_are_not_saved(update, flags, saved, call, monkeypatch):
    """Those that are left by an update at a learning rate that is none."""
    monkeypatch.setattr(optimization, "lr_factor", lambda name, step, steps: math.nan if step == update else 0.3)
    status, _, err = call("fit", *SMALL.split(), *flags.split(), "--trainer.max_epochs", 9)
    assert status == 2
    assert re.search(r"\nerror: \w+/loss is not finite after \d updates; try a smaller --model.lr", err)
    kept = {path.stem: read(path) for path in Path().rglob("*.ckpt")}
    assert all(tensor.isfinite().all() for each in kept.values() for tensor in each["state_dict"].values())
    assert kept["last"]["global_step"] == saved


# Threads.


# Rows of an update times parameters, by hand: 5,439 x 11,897 = 65 million; 32 x 11,897; 5,439 x 62,891 = 342 million.
@pytest.mark.parametrize(
    ("recipe", "asked", "expected"), [("quick", 0, 1), ("lecture", 0, 1), ("wide", 0, 3), ("wide", 2, 2)]
)
def test_all_threads_share_what_is_large_unless_a_number_is_asked_for(recipe, asked, expected, call, monkeypatch):
    """Looks at the training steps, on a machine of three cores."""
    seen, step = set(), MLP.training_step
    monkeypatch.setattr(callbacks, "MOST", 3)
    monkeypatch.setattr(MLP, "training_step", lambda *a: seen.add(torch.get_num_threads()) or step(*a))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        torch.set_num_threads(asked)  # as torch itself does when it is imported
        monkeypatch.setenv("OMP_NUM_THREADS", str(asked))
    short = ["--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1, "--trainer.max_steps", -1]
    status, _, err = call("fit", "--config", recipe, *short, "--pictures", "false")
    assert status == 0, err
    assert seen == {expected}
