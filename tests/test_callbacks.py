import io
import re
from functools import partial

import pytest
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from makemore_pl import MLP, NamesDataModule, callbacks
from makemore_pl.callbacks import Progress, ValidateLastStep


class Record(Callback):
    def __init__(self):
        self.validated = []

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.global_step)


def fit(folder, *callbacks, **options):
    defaults = {"logger": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    defaults |= {"num_sanity_val_steps": 0, "val_check_interval": 4, "check_val_every_n_epoch": None}
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), **defaults | options)
    trainer.fit(MLP(hidden_size=8), NamesDataModule(num_words=50, batch_size=50))
    return trainer


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        ({"max_steps": 3}, [3]),
        ({"max_steps": 8}, [4, 8]),
        ({"max_steps": 10}, [4, 8, 10]),
        ({"max_epochs": 2, "limit_train_batches": 3}, [4, 6]),
        ({"max_epochs": 2, "limit_train_batches": 3, "check_val_every_n_epoch": 1, "val_check_interval": 1.0}, [3, 6]),
    ],
)
def test_the_last_step_is_validated(options, validated, tmp_path):
    record = Record()
    fit(tmp_path, ValidateLastStep(), record, enable_progress_bar=False, **options)
    assert record.validated == validated


def test_progress_says_lines_where_there_is_no_terminal(tmp_path, capsys):
    fit(tmp_path, Progress(), ValidateLastStep(), max_steps=10)
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.split("\n") if line.startswith("step ")]
    assert re.fullmatch(r"step 10/10  train \d\.\d{4}  val \d\.\d{4}  [\d,]+ steps/s", line)


def test_progress_draws_a_bar_on_a_terminal(tmp_path, monkeypatch):
    progress, screen = Progress(), io.StringIO()
    terminal = partial(Console, file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(callbacks, "Console", lambda stderr: terminal())
    fit(tmp_path, progress, ValidateLastStep(), max_steps=10)
    assert re.search(r"10/10.*train \d\.\d{4}  val \d\.\d{4}  [\d,]+ steps/s", screen.getvalue())
    assert progress.bar is None
