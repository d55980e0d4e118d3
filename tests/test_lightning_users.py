"""What people who know Lightning do with the model, the data and the command line: it works as Lightning says."""

import copy
import pickle
import re
import sys
from functools import partial
from pathlib import Path

import notebook
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from torch import nn

from makemore_pl import MLP, NamesDataModule, Sampler
from makemore_pl.checkpoints import read
from makemore_pl.cli import main

pytestmark = pytest.mark.usefixtures("one_thread", "folder")

SMALL = ["--data.num_words", 60, "--model.hidden_size", 8, "--pictures", "false", "--trainer.accelerator", "cpu"]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
BLOCKS = {"batch_size": 32, "replacement": True, "steps_per_execution": 3}
SGD = {"optimizer": "sgd", "lr": 0.1}


class Seen(Callback):
    """Keeps the learning rate of every step, and the contexts of every batch of every epoch."""

    def __init__(self):
        self.rates, self.epochs = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs[-1].append(batch[0].tolist())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", **quiet | {"enable_checkpointing": False} | options)


def names(**options):
    return NamesDataModule(**{"num_words": 100} | options)


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


# Optimizers and schedulers of one's own.


class Stepped(MLP):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Groups(MLP):
    def configure_optimizers(self):
        others = [self.W1, self.b1, self.W2, self.b2]
        return torch.optim.AdamW([{"params": [self.C], "lr": 0.1}, {"params": others, "lr": 0.01}])


# By hand, of the linear schedule: lr for a tenth of the run, then down to zero in a line.
@pytest.mark.parametrize(
    ("model", "rates"),
    [
        (MLP, [0.7 * min(1, (6 - step) / 6 / 0.9) for step in range(6)]),
        (Stepped, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005]),
        (Groups, [0.1] * 6),
    ],
)
@pytest.mark.parametrize("limit", [{"max_steps": 6}, {"max_epochs": 2}])
def test_optimizers_of_ones_own_and_callbacks_of_lightning_go_on_from_a_checkpoint(model, rates, limit):
    ends, each = [], {"auto_insert_metric_name": False, "save_top_k": -1, "save_on_train_epoch_end": False}
    for ckpt_path in (None, "3.ckpt"):
        seen, early, saving = Seen(), EarlyStopping("val/loss", patience=50), ModelCheckpoint(".", "{step}", **each)
        run = trainer(callbacks=[seen, early, saving], enable_checkpointing=True, **limit)
        ends.append(model(hidden_size=8, lr=0.7))
        run.fit(ends[-1], names(steps_per_epoch=3), ckpt_path=ckpt_path, weights_only=True)
        assert seen.rates == pytest.approx(rates[3 * len(ends) - 3 :])
    assert same(*ends)


class Plateau(MLP):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.1, threshold=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


def test_a_plateau_follows_the_validation():
    seen = Seen()
    trainer(max_steps=9, callbacks=[seen]).fit(Plateau(hidden_size=8), names(steps_per_epoch=3))
    assert seen.rates == pytest.approx([0.5] * 3 + [0.05] * 3 + [0.005] * 3)


def test_stock_lightning_cli_takes_both_classes():
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "enable_model_summary": False}
    flags = "--optimizer SGD --optimizer.lr 0.5 --lr_scheduler ExponentialLR --lr_scheduler.gamma 0.1"
    flags += " --data.num_words 100 --data.steps_per_epoch 2 --model.hidden_size 8 --trainer.max_steps 4"
    options = {"run": False, "trainer_defaults": quiet, "save_config_callback": None}
    made = LightningCLI(MLP, NamesDataModule, args=flags.split(), **options)
    made.trainer.fit(made.model, made.datamodule)
    made.trainer.save_checkpoint("cli.ckpt")
    assert made.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)  # a tenth after each of two epochs
    assert MLP.load_from_checkpoint("cli.ckpt").hparams["hidden_size"] == 8
    assert NamesDataModule.load_from_checkpoint("cli.ckpt").hparams["num_words"] == 100


# Lightning's callbacks, finders and flags.


def test_weights_are_averaged_at_the_rate_that_was_asked_for():
    seen, averaging = Seen(), StochasticWeightAveraging(swa_lrs=0.001, swa_epoch_start=3, annealing_epochs=1)
    model = MLP(hidden_size=8, schedule="constant")
    trainer(max_epochs=5, callbacks=[seen, averaging]).fit(model, names(steps_per_epoch=2))
    assert seen.rates == pytest.approx([0.04] * 6 + [0.001] * 4)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"fast_dev_run": 2}, 2), ({"max_epochs": 2}, 6), ({"max_epochs": 2, "limit_train_batches": 2}, 4)],
)
def test_flags_count_steps_of_blocks(options, steps):
    """Three blocks are an epoch of nine updates; a fast run takes single updates."""
    fit = trainer(**options)
    fit.fit(MLP(hidden_size=8, **SGD), names(steps_per_epoch=9, **BLOCKS))
    assert fit.global_step == steps


def test_accumulated_and_clipped_steps_are_the_slow_loops():
    """Against torch alone: the mean of the gradients of each two batches, clipped."""
    model = MLP(hidden_size=8, optimizer="sgd", lr=0.5, schedule="constant")
    data = names(batch_size=64, steps_per_epoch=5)
    weights = {name: tensor.detach().double().clone().requires_grad_() for name, tensor in model.named_parameters()}
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "64-true"}
    trainer(max_steps=6, **options).fit(model, data)
    loader = data.train_dataloader()
    for group in ([0, 1], [2, 3], [4], [5, 6], [7, 8], [9]):  # the end of an epoch is the end of a step
        for weight in weights.values():
            weight.grad = None
        for update in group:
            (notebook.negative_log_likelihood(weights, *loader.batch(update)) / 2).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 0.1)
        for weight in weights.values():
            weight.data -= 0.5 * weight.grad
    for name, weight in weights.items():
        torch.testing.assert_close(model.state_dict()[name], weight.data, rtol=1e-9, atol=1e-12)


def test_an_epoch_is_a_pass_whatever_the_accumulation():
    seen, data = Seen(), names(batch_size=32)
    accumulation = GradientAccumulationScheduler({0: 4, 2: 1})
    trainer(max_epochs=4, callbacks=[accumulation, seen]).fit(MLP(hidden_size=8), data)
    windows = sorted(data.tensors["train"][0].tolist())
    assert [sorted(row for batch in epoch for row in batch) for epoch in seen.epochs] == [windows] * 4
    assert len({str(epoch) for epoch in seen.epochs}) == 4  # each in another order


def test_a_fit_and_then_one_with_ddp_spawn():
    for options in ({}, {"devices": 2, "strategy": "ddp_spawn"}):
        model, fit = MLP(hidden_size=8), trainer(max_steps=4, **options)
        fit.fit(model, names())
        assert fit.state.finished
        assert not same(model, MLP(hidden_size=8))


@pytest.mark.parametrize(("limit", "first", "more"), [("max_steps", 8, 16), ("max_epochs", 2, 4)])
def test_a_trainer_that_fits_again_has_fresh_batches_and_ends_its_schedule(limit, first, more):
    seen, model, data = Seen(), MLP(hidden_size=8, lr=0.5), names(batch_size=8, steps_per_epoch=4)
    fit = trainer(**{limit: first}, callbacks=[seen])
    fit.fit(model, data)
    setattr(fit.fit_loop if limit == "max_epochs" else fit.fit_loop.epoch_loop, limit, more)
    fit.fit(model, data)
    batches = [batch for epoch in seen.epochs for batch in epoch]
    assert batches == [data.train_dataloader().batch(update)[0].tolist() for update in range(16)]
    # By hand, of a run of 16 steps: the second half falls to zero.
    assert seen.rates[8:] == pytest.approx([0.5 * (8 - step) / 16 / 0.9 for step in range(8)])


def test_models_data_and_trainers_can_be_pickled_and_copied_after_a_fit():
    data, model, fit = names(), MLP(hidden_size=8), trainer(max_steps=2)
    fit.fit(model, data)
    fit.predict(model, Sampler(3))
    for copied in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        assert same(copied(model), model)
        for twin in (copied(data), copied(fit).datamodule):
            assert torch.equal(twin.train_dataloader().batch(7)[0], data.train_dataloader().batch(7)[0])


def test_loading_takes_lightnings_arguments():
    fit = trainer(max_steps=1)
    fit.fit(MLP(hidden_size=8), names())
    fit.save_checkpoint("saved.ckpt")
    checkpoint = torch.load("saved.ckpt", weights_only=True)
    del checkpoint["state_dict"]["b2"]
    torch.save(checkpoint, "saved.ckpt")
    with pytest.raises(RuntimeError, match="b2"):
        MLP.load_from_checkpoint("saved.ckpt")
    Path("hparams.yaml").write_text("hidden_size: 8\nlr: 0.5\n")
    loaded = MLP.load_from_checkpoint("saved.ckpt", hparams_file="hparams.yaml", strict=False)
    assert (loaded.hparams["lr"], len(loaded.vocabulary)) == (0.5, 27)
    load = partial(MLP.load_from_checkpoint, "saved.ckpt", strict=False, map_location=lambda storage, device: storage)
    assert load(lr=0.25).hparams["lr"] == 0.25


# Models of one's own.


class Sharp(MLP):
    """Optimizes by hand, as Lightning's documentation of manual optimization says."""

    def __init__(self, **options):
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = self.loss(self(batch[0]), batch[1])
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


def test_a_subclass_may_optimize_by_hand():
    model, fit = Sharp(hidden_size=8, **SGD), trainer(max_epochs=1)
    fit.fit(model, names(steps_per_epoch=6, **BLOCKS))
    assert (model.automatic_optimization, fit.global_step) == (False, 6)
    assert not same(model, MLP(hidden_size=8))


class Deep(MLP):
    def __init__(self, *args, layers: int = 1, **options):
        super().__init__(*args, **options)
        self.save_hyperparameters()
        H = self.hparams["hidden_size"]
        self.more = nn.Sequential(*(nn.Sequential(nn.Linear(H, H), nn.Tanh()) for _ in range(layers)))

    def hidden(self, X):
        return self.more(super().hidden(X))


def test_a_subclass_trains_resumes_is_judged_and_sampled_on_its_command_line(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["deep.py", *map(str, words)])
        capsys.readouterr()
        main(Deep)
        return capsys.readouterr().out

    run("fit", *SMALL, "--model.layers", 2, "--trainer.max_steps", 5)
    run("fit", "--ckpt_path", "last", "--trainer.max_steps", 8)
    checkpoint = read(LAST)
    assert (checkpoint["global_step"], checkpoint["hyper_parameters"]["layers"]) == (8, 2)
    assert "more.1.0.weight" in checkpoint["state_dict"]
    best = Deep.load_from_checkpoint(LAST.with_name("best.ckpt"))
    assert run("predict", "--sample.num_names", 4).split() == best.sample(4)
    for command in ("validate", "test"):
        assert re.search(r"\nnetwork +\d\.\d{4}", run(command))


@pytest.mark.parametrize(
    ("callback", "status", "message"),
    [
        ("LearningRateFinder", 0, ""),
        ("BatchSizeFinder, init_args: {max_trials: 2}", 0, ""),
        ("Timer, init_args: {duration: '00:00:05:00'}", 2, "cannot hold"),
        ("StochasticWeightAveraging, init_args: {swa_lrs: 0.001, swa_epoch_start: 2}", 0, ""),
        ("EarlyStopping, init_args: {monitor: val/nonsense}", 2, "val/nonsense"),
        ("ModelCheckpoint, init_args: {dirpath: own, monitor: val/accuracy}", 0, ""),
        ("TQDMProgressBar", 0, ""),
    ],
)
def test_callbacks_from_a_config_work_or_say_in_one_line_what_they_miss(callback, status, message, call):
    Path("own.yaml").write_text(f"trainer: {{callbacks: [{{class_path: {callback}}}]}}\n")
    flags = ["--config", "own.yaml", *SMALL, "--data.batch_size", 16, "--data.steps_per_epoch", 4]
    found, _, err = call("fit", *flags, "--trainer.max_epochs", 3)
    assert (found, "Traceback" in err) == (status, False), err
    assert message in err.splitlines()[-1]
    if status == 0:
        assert read(LAST)["global_step"] == 12
        # The run is resumed, and repeated from its config.
        assert call("fit", "--ckpt_path", "last", "--trainer.max_epochs", 4)[0] == 0
        assert call("fit", "--config", LAST.parents[1] / "config.yaml")[0] == 0
    else:
        assert all(each.is_file() for each in Path("lightning_logs").glob("*/*"))  # no empty folder
