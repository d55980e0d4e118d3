import math
from functools import partial

import notebook
import pytest
import torch
from conftest import Dropout
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl import MLP, NamesDataModule
from makemore_pl.optimization import total_updates, updates
from makemore_pl.windows import count_windows

SMALL = partial(MLP, hidden_size=8)
# Two blocks of 6 updates in an epoch.
BLOCKS = {"num_words": 200, "batch_size": 16, "steps_per_epoch": 12, "steps_per_execution": 6, "replacement": True}
SGD = partial(MLP, hidden_size=8, optimizer="sgd", lr=0.1, schedule="halfway")


@pytest.fixture
def trainer(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    return lambda **options: Trainer(**quiet | options)


class Record(Callback):
    """Keeps the learning rate of every step, and the steps with a validation."""

    def __init__(self):
        self.lrs, self.validated = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.global_step)


def test_the_five_tensors_have_the_lectures_shapes():
    # 26 letters and the boundary; 3 x 10 numbers of context; 200 units.
    assert str(MLP()) == "MLP(C (27, 10), W1 (30, 200), b1 (200,), W2 (200, 27), b2 (27,))"
    assert sum(parameter.numel() for parameter in MLP().parameters()) == 11897


def test_the_lecture_initialisation_is_the_notebooks(names):
    model = MLP(embedding_dim=2, hidden_size=100, init="lecture")
    for name, tensor in notebook.parameters().items():
        assert torch.equal(model.state_dict()[name], tensor)
    X, Y = notebook.build_dataset(names[:5], notebook.stoi(names))
    assert model.loss(model(X), Y).item() == pytest.approx(17.7697, abs=5e-5)


def test_the_scaled_initialisation_is_the_same_draws_scaled():
    model, draws = MLP(), notebook.parameters(E=10, H=200)
    torch.testing.assert_close(model.C.data, draws["C"])
    torch.testing.assert_close(model.W1.data, draws["W1"] * 5 / 3 / math.sqrt(30))
    torch.testing.assert_close(model.b1.data, draws["b1"] / 100)
    torch.testing.assert_close(model.W2.data, draws["W2"] / 100)
    assert not model.b2.any()


def test_loss_and_gradient_are_those_of_the_formula_by_examples_and_by_counts(names):
    X, Y = notebook.build_dataset(names[:3000], notebook.stoi(names))
    counted = count_windows(X, Y, 27)
    model = MLP().double()
    theirs = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}
    expected = notebook.negative_log_likelihood(theirs, X, Y)
    expected.backward()
    for contexts, targets in [(X, Y), (counted.contexts, counted[:])]:
        model.zero_grad()
        loss = model.loss(model(contexts), targets)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-13)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": -1}, "hidden_size is -1: expected 1 or more"),
        ({"lr": float("nan")}, "lr is nan: expected 0 or more"),
        ({"weight_decay": float("inf")}, "weight_decay is inf: expected 0 or more"),
        ({"optimizer": "adam"}, "optimizer is adam: expected adamw or sgd"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        MLP(**options)


# Training.


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_is_the_notebooks_loop_with_torchs_optimizer(optimizer, names, trainer):
    model = MLP(embedding_dim=2, hidden_size=100, init="lecture", optimizer=optimizer, lr=0.05, schedule="constant")
    data = NamesDataModule(num_words=5, train_fraction=1, val_fraction=0)
    trainer(max_steps=20, precision="64-true").fit(model, data)

    X, Y = notebook.build_dataset(names[:5], notebook.stoi(names))
    parameters = {name: tensor.double().requires_grad_() for name, tensor in notebook.parameters().items()}
    adamw = torch.optim.AdamW(parameters.values(), lr=0.05, betas=(0.85, 0.95), weight_decay=0.3)
    for _ in range(20):
        adamw.zero_grad()
        notebook.negative_log_likelihood(parameters, X, Y).backward()
        if optimizer == "adamw":
            adamw.step()
        else:
            for parameter in parameters.values():
                parameter.data += -0.05 * parameter.grad
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, parameters[name].data, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("end", [{"max_steps": 40}, {"max_epochs": 10}])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1] * 40),
        ("halfway", [1] * 20 + [0.1] * 20),
        # It rises over the first tenth, and falls by 1/36 a step to nothing at step 40.
        ("linear", [0.25, 0.5, 0.75, 1] + [(40 - step) / 36 for step in range(4, 40)]),
    ],
)
def test_schedules_end_with_their_run(schedule, expected, end, trainer):
    record = Record()
    data = NamesDataModule(num_words=50, steps_per_epoch=4)
    trainer(callbacks=[record], **end).fit(SMALL(lr=0.5, schedule=schedule), data)
    assert record.lrs == pytest.approx([0.5 * factor for factor in expected])


def test_without_an_end_the_learning_rate_stays(trainer):
    record, ends = Record(), {"max_steps": -1, "max_epochs": -1, "max_time": {"seconds": 1}}
    trainer(callbacks=[record], **ends).fit(SMALL(lr=0.5, schedule="halfway"), NamesDataModule(num_words=50))
    assert set(record.lrs) == {0.5}


@pytest.mark.parametrize(("max_steps", "validated"), [(3, [3]), (8, [4, 8]), (10, [4, 8, 10])])
def test_the_last_step_is_validated(max_steps, validated, trainer):
    record = Record()
    trainer(max_steps=max_steps, callbacks=[record]).fit(SMALL(), NamesDataModule(num_words=50, steps_per_epoch=4))
    assert record.validated == validated


# Blocks of updates.


def test_blocks_are_the_updates_of_the_notebooks_loop(trainer):
    model, data = SGD(init="lecture"), NamesDataModule(**BLOCKS)
    theirs = {name: tensor.detach().double().requires_grad_() for name, tensor in model.named_parameters()}
    fit = trainer(max_epochs=3, precision="64-true")
    fit.fit(model, data)
    assert (fit.global_step, updates(fit), total_updates(fit)) == (6, 36, 36)
    losses = []
    for update in range(36):
        loss = notebook.negative_log_likelihood(theirs, *data.train_dataloader().batch(update))
        gradients = torch.autograd.grad(loss, list(theirs.values()))
        for parameter, gradient in zip(theirs.values(), gradients, strict=True):
            parameter.data -= (0.1 if update < 18 else 0.01) * gradient
        losses.append(loss.item())
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor.data, theirs[name].data, rtol=1e-10, atol=1e-12)
    assert fit.callback_metrics["train/loss"].item() == pytest.approx(sum(losses[-6:]) / 6, rel=1e-6)


def test_logs_of_blocks_count_updates(trainer, tmp_path):
    logger = CSVLogger(tmp_path, "", "")
    trainer(max_epochs=3, logger=logger, log_every_n_steps=1).fit(SGD(), NamesDataModule(**BLOCKS))
    header, *rows = (row.split(",") for row in (tmp_path / "metrics.csv").read_text().split())
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [6, 12, 18, 24, 30, 36]
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [12, 24, 36]
    # 36 updates: the eighteenth is the last of the first half.
    rates = [float(row["lr-SGD"]) for row in rows if row["lr-SGD"]]
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 3)


def test_other_blocks_than_those_of_the_checkpoint_are_refused(trainer, tmp_path):
    fit = trainer(max_epochs=1)
    fit.fit(SGD(), NamesDataModule(**BLOCKS))
    fit.save_checkpoint(tmp_path / "saved.ckpt")
    data = NamesDataModule(**BLOCKS | {"steps_per_execution": 3})
    with pytest.raises(ValueError, match="counts blocks of updates: resume with its steps_per_execution and"):
        trainer(max_epochs=2).fit(SGD(), data, ckpt_path=tmp_path / "saved.ckpt", weights_only=True)


class Own(MLP):
    def hidden(self, X):
        return super().hidden(X) * 2


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (MLP, {}),
        (partial(Own, optimizer="sgd"), {}),
        (SGD, {"precision": "bf16-mixed"}),
        (SGD, {"accumulate_grad_batches": 2}),
        (SGD, {"gradient_clip_val": 1.0}),
        (SGD, {"max_steps": 24}),
    ],
)
def test_what_is_not_the_lectures_training_takes_one_update_at_a_time(model, options, trainer):
    fit = trainer(**{"max_epochs": 2} | options)
    fit.fit(model(), NamesDataModule(**BLOCKS))
    assert (len(fit.train_dataloader), fit.fit_loop.epoch_loop.batch_progress.total.completed) == (12, 24)


# Evaluation.


@pytest.mark.parametrize("rows", [None, 7])  # counted, in one batch; examples, in many
@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_exact_over_the_split_whatever_the_batches(rows, stage, names, trainer):
    model, words = MLP(init="lecture"), names[:1000]
    X, Y = notebook.build_dataset(notebook.split(words)[1 if stage == "val" else 2], notebook.stoi(names))
    data = NamesDataModule(num_words=1000) if rows is None else DataLoader(TensorDataset(X, Y), batch_size=rows)
    (metrics,) = getattr(trainer(), {"val": "validate", "test": "test"}[stage])(model, data, verbose=False)
    loss = notebook.negative_log_likelihood(model.state_dict(), X, Y).item()
    hits = sum(int(model(x[None]).argmax()) == y for x, y in zip(X, Y.tolist(), strict=True))
    expected = {"loss": loss, "perplexity": math.exp(loss), "accuracy": hits / len(Y)}
    assert metrics == pytest.approx({f"{stage}/{name}": value for name, value in expected.items()}, rel=1e-4)


# Checkpoints.


@pytest.fixture
def saved(trainer, tmp_path):
    """Trains a model for two steps, and saves it."""

    def save(model):
        fit = trainer(max_steps=2)
        fit.fit(model, NamesDataModule(num_words=50, block_size=model.block_size))
        fit.save_checkpoint(tmp_path / "saved.ckpt")
        return tmp_path / "saved.ckpt"

    return save


def test_a_checkpoint_loads_in_one_line_and_samples_in_another(saved):
    model = MLP(block_size=2, hidden_size=8)
    path = saved(model)
    plain = torch.load(path, weights_only=True)["hyper_parameters"]
    assert {type(value) for value in plain.values()} <= {str, int, float}
    loaded = MLP.load_from_checkpoint(path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.sample(5, prompt="zo", seed=3) == model.sample(5, prompt="zo", seed=3)


def test_names_are_drawn_and_scored_without_dropout_which_stays_for_training():
    model = Dropout()
    assert model.sample(5) == model.sample(5)
    assert model.score(["emma"]) == model.score(["emma"])
    assert model.training


class Slower(MLP):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.001)


def test_another_network_is_refused_and_another_optimizer_is_not(saved):
    assert MLP.load_from_checkpoint(saved(Slower(hidden_size=8))).hparams["hidden_size"] == 8
    path = saved(Own(hidden_size=8))
    assert Own.load_from_checkpoint(path).hparams["hidden_size"] == 8
    message = r"^the checkpoint is of .*Own.*, not of MLP.forward and MLP.hidden: load it with the class that saved it$"
    with pytest.raises(ValueError, match=message):
        MLP.load_from_checkpoint(path)


def test_a_checkpoint_of_another_alphabet_is_refused(saved, trainer, towns):
    path, data = saved(SMALL()), NamesDataModule(str(towns[0]))
    with pytest.raises(ValueError, match=r"^the model has another vocabulary than"):
        trainer(max_steps=4).fit(SMALL(data.vocabulary.characters), data, ckpt_path=path, weights_only=True)
