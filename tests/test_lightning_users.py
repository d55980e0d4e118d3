"""What people who know Lightning do with the model and the data, from Python: it works as Lightning says."""

import logging
import math
import subprocess
import sys

import notebook
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from torch import nn

from makemore_pl import MLP, NamesDataModule

BLOCKS = [{}, {"steps_per_execution": 3}]


pytestmark = pytest.mark.usefixtures("one_thread")


class Rates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.used.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def trainer(tmp_path):
    def make(**options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        return Trainer(default_root_dir=tmp_path, **quiet | {"enable_checkpointing": False} | options)

    return make


def names(**options):
    return NamesDataModule(**{"num_words": 100} | options)


def test_an_epoch_is_25_updates_of_all_windows_or_a_pass(trainer):
    from conftest import ROOT

    first = (ROOT / "names.txt").read_text(encoding="utf-8").split("\n")[:100]
    X, _ = notebook.build_dataset(notebook.split(first)[0], notebook.stoi(first + list("abcdefghijklmnopqrstuvwxyz")))
    for options, updates in [({}, 25), ({"batch_size": 100}, math.ceil(len(X) / 100))]:
        fit = trainer(max_epochs=2)
        fit.fit(MLP(hidden_size=8), names(**options))
        assert fit.global_step == 2 * updates
        assert "val/loss" in fit.callback_metrics


# Optimizers and schedulers of one's own.


class Stepped(MLP):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        if not self.automatic_optimization:
            return [optimizer], [scheduler]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Plateau(MLP):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.1, threshold=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


class Groups(MLP):
    def configure_optimizers(self):
        others = [self.W1, self.b1, self.W2, self.b2]
        return torch.optim.AdamW([{"params": [self.C], "lr": 0.1}, {"params": others, "lr": 0.01}])


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_scheduler_of_ones_own_has_its_rates(blocks, trainer):
    rates = Rates()
    trainer(max_steps=6, callbacks=[rates]).fit(Stepped(hidden_size=8), names(batch_size=32, **blocks))
    assert rates.used == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])


def test_a_plateau_follows_the_validation(trainer):
    rates = Rates()
    trainer(max_steps=9, callbacks=[rates]).fit(Plateau(hidden_size=8), names(steps_per_epoch=3))
    assert rates.used == pytest.approx([0.5] * 3 + [0.05] * 3 + [0.005] * 3)


def test_groups_of_ones_own_keep_their_rates_also_on_resume(trainer, tmp_path):
    first = trainer(max_steps=3)
    first.fit(Groups(hidden_size=8), names())
    first.save_checkpoint(tmp_path / "first.ckpt")
    second = trainer(max_steps=5)
    second.fit(Groups(hidden_size=8, lr=0.7), names(), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    assert [group["lr"] for group in second.optimizers[0].param_groups] == [0.1, 0.01]


STOCK = """
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from makemore_pl import MLP, NamesDataModule

class Rates(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        print(round(optimizer.param_groups[0]["lr"], 6))

quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
defaults = quiet | {"max_steps": 6, "callbacks": [Rates()], "enable_model_summary": False}
cli = LightningCLI(MLP, NamesDataModule, run=False, trainer_defaults=defaults, save_config_callback=None)
cli.trainer.fit(cli.model, cli.datamodule)
cli.trainer.save_checkpoint("cli.ckpt")
"""


def test_stock_lightning_cli_with_an_optimizer(tmp_path):
    """In a process of its own: our command line lets nobody import what a flag names."""
    flags = ["--optimizer", "SGD", "--optimizer.lr", "0.5", "--lr_scheduler", "ExponentialLR"]
    flags += ["--lr_scheduler.gamma", "0.1", "--data.num_words", "100", "--data.steps_per_epoch", "2"]
    line = [sys.executable, "-c", STOCK, *flags, "--model.hidden_size", "8"]
    run = subprocess.run(line, cwd=tmp_path, text=True, capture_output=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert [float(rate) for rate in run.stdout.split()] == [0.5, 0.5, 0.05, 0.05, 0.005, 0.005]
    loaded = MLP.load_from_checkpoint(tmp_path / "cli.ckpt")
    assert loaded.hparams["hidden_size"] == 8
    assert "_instantiator" not in loaded.hparams
    assert NamesDataModule.load_from_checkpoint(tmp_path / "cli.ckpt").hparams["num_words"] == 100


# Callbacks, finders and flags.


def test_weights_are_averaged_at_the_rate_that_was_asked_for(trainer):
    rates = Rates()
    averaging = StochasticWeightAveraging(swa_lrs=0.001, swa_epoch_start=3, annealing_epochs=1)
    fit = trainer(max_epochs=5, callbacks=[rates, averaging])
    fit.fit(MLP(hidden_size=8, schedule="constant"), names(steps_per_epoch=2))
    assert rates.used == pytest.approx([0.04] * 6 + [0.001] * 4)


def test_finders_measure_something(trainer):
    """The loss falls at small rates and is far above its start at large ones."""
    model = MLP(schedule="constant")
    found = Tuner(trainer(max_steps=50)).lr_find(model, names(), num_training=60)
    losses = found.results["loss"]
    assert losses[0] < 3.4
    assert losses[-1] > min(losses) + 1
    assert model.hparams["lr"] == found.suggestion()
    rates = Rates()
    fit = trainer(max_steps=5, callbacks=[LearningRateFinder(num_training_steps=60), rates])
    model = MLP(schedule="constant")
    fit.fit(model, names())
    assert rates.used[-5:] == [model.hparams["lr"]] * 5
    assert model.hparams["lr"] != 0.04
    assert fit.global_step == 5


def test_one_batch_is_overfitted(trainer):
    fit = trainer(max_steps=1000, overfit_batches=1, limit_val_batches=0)
    model = MLP(schedule="constant", lr=0.02, weight_decay=0.0)
    fit.fit(model, NamesDataModule(batch_size=32))
    assert fit.callback_metrics["train/loss"] < 0.5


@pytest.mark.parametrize("blocks", BLOCKS)
def test_overfitted_batches_are_those_of_the_first_epoch(blocks, trainer):
    class Seen(Callback):
        def on_train_batch_start(self, trainer, model, batch, index):
            seen.setdefault(index, set()).add(str(batch[0].tolist()))

    seen = {}
    trainer(max_epochs=3, overfit_batches=2, callbacks=[Seen()]).fit(
        MLP(hidden_size=8), names(batch_size=32, steps_per_epoch=9, **blocks)
    )
    assert {index: len(batches) for index, batches in seen.items()} == {0: 1, 1: 1}


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"fast_dev_run": 2}, {1: 2, 3: 2}),
        ({"max_epochs": 2}, {1: 14, 3: 14}),
        ({"max_epochs": 2, "limit_train_batches": 2}, {1: 4, 3: 10}),  # 3, 3, then 1 to the end of seven, and 3
        ({"max_steps": 5, "precision": "bf16-mixed"}, {1: 5, 3: 5}),
        ({"max_steps": 5, "profiler": "simple"}, {1: 5, 3: 5}),
        ({"max_steps": -1, "max_time": {"seconds": 1}}, None),
    ],
)
def test_flags_do_as_they_say(options, steps, blocks, trainer):
    fit = trainer(**options)
    fit.fit(MLP(hidden_size=8), names(batch_size=64, steps_per_epoch=7, **blocks))
    assert steps is None or fit.global_step == steps[blocks.get("steps_per_execution", 1)]
    assert "val/loss" in fit.callback_metrics


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}])
def test_what_blocks_cannot_do_is_one_line(options, trainer):
    with pytest.raises(
        ValueError, match="steps_per_execution is 3: expected 1 where gradients are accumulated or clip"
    ):
        trainer(max_steps=3, **options).fit(MLP(hidden_size=8), names(batch_size=32, steps_per_execution=3))


def test_accumulated_and_clipped_steps_are_the_slow_loops(trainer):
    """Against torch alone: the mean of the gradients of each two batches, clipped."""
    data = names(batch_size=64, steps_per_epoch=5)
    model = MLP(hidden_size=8, optimizer="sgd", lr=0.5, schedule="constant", init="lecture")
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


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_blocks_train_as_single_steps_do(optimizer, trainer):
    models = []
    for blocks in ({}, {"steps_per_execution": 4}):
        models.append(MLP(hidden_size=8, optimizer=optimizer, lr=0.05))
        fit = trainer(max_steps=30, precision="64-true")
        fit.fit(models[-1], names(batch_size=50, steps_per_epoch=13, **blocks))
        assert fit.global_step == 30
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_a_run_resumes_from_a_checkpoint_of_the_user_in_the_middle_of_an_epoch(trainer, tmp_path):
    for number, (data, model) in enumerate(
        [
            ({"batch_size": 32}, {}),
            ({"batch_size": 32, "steps_per_execution": 2}, {"optimizer": "sgd", "lr": 0.1}),
            ({}, {}),
        ]
    ):
        folder, ends = tmp_path / str(number), []

        def fit(ckpt_path=None, folder=folder, ends=ends, data=data, model=model):
            saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)
            run = trainer(max_steps=18, precision="64-true", enable_checkpointing=True, callbacks=[saving])
            ends.append(MLP(hidden_size=8, **model))
            run.fit(ends[-1], names(steps_per_epoch=10, **data), ckpt_path=ckpt_path, weights_only=True)
            return run

        whole = fit()
        for step in (4, 8, 12):
            resumed = fit(folder / f"step={step}.ckpt")
            assert (resumed.global_step, resumed.current_epoch) == (whole.global_step, whole.current_epoch)
            assert all(torch.equal(*pair) for pair in zip(ends[0].parameters(), ends[-1].parameters(), strict=True))
            assert resumed.callback_metrics["val/loss"] == whole.callback_metrics["val/loss"]


@pytest.mark.parametrize("limit", [{"max_steps": 60}, {"max_epochs": 12}])
def test_early_stopping_resumes(limit, trainer, tmp_path):
    """Lightning resumes with the end of an epoch, where EarlyStopping looks for the loss of a validation long ago."""
    ends = []
    for ckpt_path in (None, tmp_path / "step=30.ckpt"):
        saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=False)
        fit = trainer(enable_checkpointing=True, callbacks=[EarlyStopping("val/loss", patience=50), saving], **limit)
        ends.append(MLP(hidden_size=8))
        fit.fit(ends[-1], names(steps_per_epoch=5), ckpt_path=ckpt_path, weights_only=True)
        assert fit.global_step == 60
    assert all(torch.equal(*pair) for pair in zip(ends[0].parameters(), ends[1].parameters(), strict=True))


def test_hyperparameters_that_are_given_win_on_resume_and_the_first_rate_is_theirs(trainer, tmp_path):
    first = trainer(max_steps=4)
    first.fit(MLP(hidden_size=8, lr=0.5), names())
    first.save_checkpoint(tmp_path / "first.ckpt")
    rates = Rates()
    second = trainer(max_steps=8, callbacks=[rates])
    second.fit(MLP(hidden_size=8, lr=0.9), names(), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    # By hand: of eight steps, those after the fourth take a half, 3/8, 2/8 and 1/8 of lr, over 0.9.
    assert rates.used == pytest.approx([0.5, 0.375, 0.25, 0.125])


# Models of one's own, and data that does not fit.


class Deep(MLP):
    def __init__(self, layers: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.save_hyperparameters()
        H = self.hparams["hidden_size"]
        self.more = nn.Sequential(*(nn.Sequential(nn.Linear(H, H), nn.Tanh()) for _ in range(layers)))

    def hidden(self, X):
        return self.more(super().hidden(X))


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_model_with_more_layers_trains_and_loads(blocks, trainer, tmp_path):
    model = Deep(layers=2, hidden_size=8, optimizer="sgd")
    before = [parameter.detach().clone() for parameter in model.more.parameters()]
    fit = trainer(max_steps=5)
    fit.fit(model, names(batch_size=32, **blocks))
    assert not any(torch.equal(*pair) for pair in zip(before, model.more.parameters(), strict=True))
    fit.save_checkpoint(tmp_path / "deep.ckpt")
    loaded = Deep.load_from_checkpoint(tmp_path / "deep.ckpt")
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"deep.ckpt: its hyperparameters do not make a MLP .*'layers'"):
        MLP.load_from_checkpoint(tmp_path / "deep.ckpt")


class GRU(LightningModule):
    def __init__(self):
        super().__init__()
        self.embedding, self.gru, self.output = nn.Embedding(27, 8), nn.GRU(8, 16, batch_first=True), nn.Linear(16, 27)

    def forward(self, X):
        return self.output(self.gru(self.embedding(X))[0][:, -1])

    def training_step(self, batch, batch_idx):
        return MLP.loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", MLP.loss(self(batch[0]), batch[1]), batch_size=int(batch[1].sum()))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.003)


@pytest.mark.parametrize("data", [{}, {"batch_size": 64}])
def test_another_model_takes_the_data(data, trainer):
    fit = trainer(max_epochs=2)
    fit.fit(GRU(), names(**data))
    assert fit.callback_metrics["val/loss"] < math.log(27)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"block_size": 4}, "the model's block_size is 4, that of the data 3"),
        ({"vocabulary": "abc"}, "the model's vocabulary is 'abc', that of the data 'abcdefghijklmnopqrstuvwxyz'"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_data_that_does_not_fit_is_named(command, model, message, trainer):
    with pytest.raises(ValueError, match=f"^{message}$"):
        getattr(trainer(max_steps=2), command)(MLP(**model), names())


def test_predict_gives_names(trainer):
    (drawn,) = trainer().predict(MLP(), datamodule=names())
    assert drawn == MLP().sample(20)


# torch's own tools.


def test_the_model_can_be_exported_with_any_batch(caplog):
    model, X = MLP(), torch.arange(12).view(4, 3)
    with caplog.at_level(logging.ERROR):
        program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("B")},))
    module = program.module()
    other = torch.arange(21).view(7, 3)
    torch.testing.assert_close(module(other), model(other))
    with torch.no_grad():
        torch.testing.assert_close(module(X), model(X))


def test_functional_gradients_are_the_ordinary_ones():
    model, X = MLP().double(), torch.arange(12).view(4, 3)
    Y = torch.tensor([1, 2, 3, 4])

    def loss(parameters, X, Y):
        return MLP.loss(torch.func.functional_call(model, parameters, (X,)), Y)

    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    found = torch.func.grad(loss)(parameters, X, Y)
    hidden = torch.tanh(model.C[X].flatten(1) @ model.W1 + model.b1)
    F.cross_entropy(hidden @ model.W2 + model.b2, Y).backward()
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(found[name], tensor.grad)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, X[:, None], Y[:, None])
    torch.testing.assert_close(each["W1"].mean(0), model.W1.grad)
