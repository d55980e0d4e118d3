import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from makemore_pl import MLP, NamesDataModule
from makemore_pl.callbacks import ValidateLastStep
from makemore_pl.faststeps import FastSteps

MODELS = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "lr": 0.1, "schedule": "halfway", "init": "lecture"},
}
DATA = {
    "counted": {},
    "all windows": {"counted": False},
    "minibatch": {"batch_size": 16},
    "smoothed": {"batch_size": 16, "smoothing": 0.5},
    "replacement": {"batch_size": 16, "replacement": True},
    "all drawn anew": {"replacement": True},
}
LENGTHS = {
    "steps": {"max_steps": 47},
    "epochs": {"max_epochs": 3},
    "validation by epoch": {"max_epochs": 4, "check_val_every_n_epoch": 2, "val_check_interval": 1.0},
    "limited": {"max_steps": 30, "limit_train_batches": 9},
}


def fit(folder, fast, model, data, *callbacks, ckpt_path=None, **options):
    """Returns the last checkpoint, the log, and how many steps the Trainer took itself."""
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    callbacks = [*callbacks, *([FastSteps()] if fast else []), ValidateLastStep(), LearningRateMonitor("step"), last]
    defaults = {"log_every_n_steps": 5, "val_check_interval": 11, "check_val_every_n_epoch": None}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        logger=CSVLogger(folder, ""), callbacks=callbacks, num_sanity_val_steps=0, **quiet | defaults | options
    )
    steps = []
    advance = trainer.fit_loop.epoch_loop.advance
    trainer.fit_loop.epoch_loop.advance = lambda fetcher: (steps.append(1), advance(fetcher))
    module = MLP(**{"hidden_size": 16} | model)
    trainer.fit(module, NamesDataModule(num_words=60, **data), ckpt_path=ckpt_path, weights_only=True)
    return (
        torch.load(folder / "last.ckpt", weights_only=True),
        (folder / "version_0/metrics.csv").read_text(),
        len(steps),
    )


def assert_same(ours, theirs, path=""):
    """Numbers to rounding, everything else exactly."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=lambda message: f"{path}: {message}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), path
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-9), path
    else:
        assert ours == theirs, path


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_fast_steps_are_the_plain_steps(model, data, length, tmp_path):
    arguments = {"model": MODELS[model], "data": DATA[data], "precision": "64-true", **LENGTHS[length]}
    fast, fast_log, fast_steps = fit(tmp_path / "fast", True, **arguments)
    plain, plain_log, plain_steps = fit(tmp_path / "plain", False, **arguments)
    for checkpoint in (fast, plain):
        checkpoint.pop("callbacks")  # they name their folders
    assert_same(fast, plain)
    assert plain_steps == plain["global_step"]
    assert fast_steps <= plain_steps / 2 or (length == "epochs" and "batch_size" not in DATA[data])

    fast_log, plain_log = ([line.split(",") for line in log.split()] for log in (fast_log, plain_log))
    assert len(fast_log) == len(plain_log) > 2
    for ours, theirs in zip(fast_log[1:], plain_log[1:], strict=True):
        assert [float(x or -1) for x in ours] == pytest.approx([float(x or -1) for x in theirs], rel=1e-9)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("stop", [22, 27])
def test_a_fast_run_resumes_as_if_it_had_not_stopped(data, stop, tmp_path):
    model = {"schedule": "constant"}
    whole, _, _ = fit(tmp_path / "whole", True, model, DATA[data], max_steps=47)
    fit(tmp_path / "first", True, model, DATA[data], max_steps=stop)
    second, _, _ = fit(
        tmp_path / "second", True, model, DATA[data], max_steps=47, ckpt_path=tmp_path / "first" / "last.ckpt"
    )
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert_same(second[part], whole[part], part)
    assert second["loops"]["fit_loop"]["state_dict"] == whole["loops"]["fit_loop"]["state_dict"]


class Watcher(Callback):
    def on_train_batch_end(self, *_):
        pass


class EpochWatcher(Callback):
    def on_train_epoch_end(self, *_):
        pass


class OtherMLP(MLP):
    pass


CASES = {
    "accumulation": ({"accumulate_grad_batches": 2}, [], {}, "gradients are accumulated"),
    "clipping": ({"gradient_clip_val": 1.0}, [], {}, "gradients are clipped"),
    "precision": ({"precision": "bf16-mixed"}, [], {}, "precision bf16-mixed"),
    "anomalies": ({"detect_anomaly": True}, [], {}, "anomalies are looked for"),
    "profiler": ({"profiler": "simple"}, [], {}, "there is a profiler"),
    "cut epochs": ({"limit_train_batches": 1}, [], {}, "epochs are cut to one batch"),
    "step checkpoints": ({}, [lambda: ModelCheckpoint(every_n_train_steps=1)], {}, "checkpoints go by training steps"),
    "watcher": ({}, [Watcher], {}, "Watcher wants every step"),
    "epoch watcher": ({}, [EpochWatcher], {"batch_size": None}, "EpochWatcher wants every step"),
}


@pytest.mark.parametrize("case", CASES)
def test_fast_steps_step_aside_and_say_so_once(case, tmp_path, caplog):
    options, callbacks, data, reason = CASES[case]
    made = [callback() for callback in callbacks]
    _, _, steps = fit(tmp_path, True, {}, {"batch_size": 16} | data, *made, max_steps=12, **options)
    assert steps >= 12
    assert caplog.text.count(f"fast steps are off: {reason}") == 1


@pytest.mark.parametrize("callback", [EpochWatcher, lambda: EarlyStopping("val/loss", patience=100)])
def test_callbacks_that_look_at_epochs_or_validations_may_stay(callback, tmp_path, caplog):
    _, _, steps = fit(tmp_path, True, {}, {"batch_size": 16}, callback(), max_steps=40)
    assert steps < 20
    assert "fast steps" not in caplog.text


def test_a_subclass_takes_its_own_steps(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "MLP", OtherMLP)
    _, _, steps = fit(tmp_path, True, {}, {"batch_size": 16}, max_steps=12)
    assert steps == 12
