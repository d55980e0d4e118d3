import math
from functools import partial

import notebook
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl import MLP, NamesDataModule, Vocabulary
from makemore_pl.optimization import total_updates, updates
from makemore_pl.windows import build_windows, count_windows

SMALL = partial(MLP, hidden_size=8)
# Blocks of 6, 6 and 1 updates in an epoch of 13.
BLOCKS = {"num_words": 200, "batch_size": 16, "steps_per_epoch": 13, "steps_per_execution": 6, "replacement": True}
SGD = partial(MLP, hidden_size=8, optimizer="sgd", lr=0.1, schedule="halfway")


@pytest.fixture(scope="module")
def first_five(names):
    return notebook.build_dataset(names[:5], notebook.stoi(names))


@pytest.fixture
def trainer(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    return lambda **options: Trainer(**quiet | options)


class Record(Callback):
    """Keeps the learning rate and the batch of every step, and the steps with a validation."""

    def __init__(self):
        self.lrs, self.batches, self.validated = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.batches.append([tensor.clone() for tensor in batch])

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.global_step)


def equal(one, other):
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_the_model_prints_its_five_tensors():
    # 26 letters and the boundary; 3 x 10 numbers of context; 200 units.
    assert str(MLP()) == "MLP(C (27, 10), W1 (30, 200), b1 (200,), W2 (200, 27), b2 (27,))"


@pytest.mark.parametrize(("sizes", "expected"), [({"embedding_dim": 2, "hidden_size": 100}, 3481), ({}, 11897)])
def test_parameters_are_as_many_as_in_the_lecture(sizes, expected):
    assert sum(parameter.numel() for parameter in MLP(**sizes).parameters()) == expected


def test_the_lecture_initialisation_is_the_notebooks(first_five):
    model = MLP(embedding_dim=2, hidden_size=100, init="lecture")
    for name, tensor in notebook.parameters().items():
        assert torch.equal(model.state_dict()[name], tensor)
    X, Y = first_five
    assert model.loss(model(X), Y).item() == pytest.approx(17.7697, abs=5e-5)


def test_the_scaled_initialisation_is_the_same_draws_scaled():
    model, draws = MLP(), notebook.parameters(E=10, H=200)
    torch.testing.assert_close(model.C.data, draws["C"])
    torch.testing.assert_close(model.W1.data, draws["W1"] * 5 / 3 / math.sqrt(30))
    torch.testing.assert_close(model.b1.data, draws["b1"] / 100)
    torch.testing.assert_close(model.W2.data, draws["W2"] / 100)
    assert not model.b2.any()


def test_the_lookup_is_one_hot_times_C_and_the_view_is_a_concatenation(first_five):
    X, _ = first_five
    model = MLP().double()
    emb = F.one_hot(X, 27).double() @ model.C
    joined = torch.cat(torch.unbind(emb, 1), 1)
    logits = torch.tanh(joined @ model.W1 + model.b1) @ model.W2 + model.b2
    torch.testing.assert_close(model(X), logits, rtol=0, atol=1e-14)


def test_the_loss_is_the_negative_log_likelihood_written_by_hand(first_five):
    model = MLP(init="lecture", embedding_dim=2, hidden_size=100)
    X, Y = first_five
    by_hand = notebook.negative_log_likelihood(model.state_dict(), X, Y)
    assert model.loss(model(X), Y).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_a_twin_of_torch_layers_has_the_same_loss_and_gradients(names):
    X, Y = notebook.build_dataset(names[:300], notebook.stoi(names))
    model = MLP().double()
    embedding, hidden, output = (
        layer.double() for layer in (nn.Embedding(27, 10), nn.Linear(30, 200), nn.Linear(200, 27))
    )
    with torch.no_grad():
        embedding.weight.copy_(model.C)
        hidden.weight.copy_(model.W1.T), hidden.bias.copy_(model.b1)
        output.weight.copy_(model.W2.T), output.bias.copy_(model.b2)
    twin = nn.Sequential(embedding, nn.Flatten(), hidden, nn.Tanh(), output)
    theirs = nn.CrossEntropyLoss()(twin(X), Y)
    ours = model.loss(model(X), Y)
    theirs.backward(), ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-14)
    for parameter, gradient in [
        (model.C, embedding.weight.grad),
        (model.W1, hidden.weight.grad.T),
        (model.b1, hidden.bias.grad),
        (model.W2, output.weight.grad.T),
        (model.b2, output.bias.grad),
    ]:
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-16)


def test_both_views_have_one_loss_and_one_gradient(names):
    vocabulary = Vocabulary.from_words(names)
    X, Y = build_windows(names[:3000], vocabulary, 3)
    counted = count_windows(X, Y, len(vocabulary))
    contexts, counts = counted.contexts, counted[:]
    assert len(contexts) == len({tuple(x) for x in X.tolist()})
    model = MLP().double()
    model.loss(model(X), Y).backward()
    examples = {name: parameter.grad for name, parameter in model.named_parameters()}
    loss = model.loss(model(X), Y).item()
    model.zero_grad()
    counted = model.loss(model(contexts), counts.double())
    counted.backward()
    assert counted.item() == pytest.approx(loss, rel=1e-13)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, examples[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size is 0: expected 1 or more"),
        ({"hidden_size": -1}, "hidden_size is -1: expected 1 or more"),
        ({"lr": -1}, "lr is -1: expected 0 or more"),
        ({"lr": float("nan")}, "lr is nan: expected 0 or more"),
        ({"weight_decay": float("inf")}, "weight_decay is inf: expected 0 or more"),
        ({"init": "random"}, "init is random: expected lecture or scaled"),
        ({"optimizer": "adam"}, "optimizer is adam: expected adamw or sgd"),
        ({"schedule": "none"}, "schedule is none: expected constant or linear or halfway"),
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


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.875 / 0.9, 0.75 / 0.9, 0.625 / 0.9, 0.5 / 0.9, 0.375 / 0.9, 0.25 / 0.9, 0.125 / 0.9]),
        ("halfway", [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
@pytest.mark.parametrize(("end", "more"), [("max_steps", 16), ("max_epochs", 4)])
def test_schedules_end_with_their_run_also_a_second_time(schedule, expected, end, more, trainer):
    record, model, data = Record(), SMALL(lr=0.5, schedule=schedule), NamesDataModule(num_words=50, steps_per_epoch=4)
    fit = trainer(callbacks=[record], **{end: more // 2})
    fit.fit(model, data)
    assert record.lrs == pytest.approx([0.5 * factor for factor in expected])
    if end == "max_steps":
        fit.fit_loop.epoch_loop.max_steps = more
    else:
        fit.fit_loop.max_epochs = more
    fit.fit(model, data)
    # By hand, of a run of 16: the second half.
    second = {"constant": [1] * 8, "linear": [(8 - step) / 16 / 0.9 for step in range(8)], "halfway": [0.1] * 8}
    assert record.lrs[8:] == pytest.approx([0.5 * factor for factor in second[schedule]])


def test_the_linear_schedule_rises_over_the_first_tenth(trainer):
    record = Record()
    trainer(callbacks=[record], max_steps=40).fit(SMALL(lr=0.9), NamesDataModule(num_words=50))
    # By hand: 40 steps rise by 1/4 of lr to step 4, then fall by 1/36 of it to nothing at step 40.
    expected = [0.225, 0.45, 0.675] + [0.025 * (40 - step) for step in range(4, 40)]
    assert record.lrs[:3] + record.lrs[4:] == pytest.approx(expected)
    assert record.lrs[3] == pytest.approx(0.9)


def test_without_an_end_the_learning_rate_stays(trainer):
    record, ends = Record(), {"max_steps": -1, "max_epochs": -1, "max_time": {"seconds": 1}}
    trainer(callbacks=[record], **ends).fit(SMALL(lr=0.5, schedule="halfway"), NamesDataModule(num_words=50))
    assert set(record.lrs) == {0.5}


@pytest.mark.parametrize(("max_steps", "validated"), [(3, [3]), (8, [4, 8]), (10, [4, 8, 10])])
def test_the_last_step_is_validated(max_steps, validated, trainer):
    record = Record()
    trainer(max_steps=max_steps, callbacks=[record]).fit(SMALL(), NamesDataModule(num_words=50, steps_per_epoch=4))
    assert record.validated == validated


@pytest.mark.parametrize("data", [{"batch_size": 100}, {}])
@pytest.mark.parametrize("stop", [5, 7])
def test_a_resumed_run_is_the_run_that_never_stopped(data, stop, trainer, tmp_path):
    def run(max_steps, ckpt_path=None):
        # The rate of an interrupted run is that of a longer one, which only `constant` knows here.
        model, record = MLP(hidden_size=16, schedule="constant"), Record()
        fit = trainer(max_steps=max_steps, callbacks=[record], precision="64-true")
        fit.fit(model, NamesDataModule(num_words=60, **data), ckpt_path=ckpt_path, weights_only=True)
        return model, fit, record.batches

    whole, _, batches = run(12)
    _, stopped, first = run(stop)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    resumed, _, second = run(12, tmp_path / "stopped.ckpt")
    assert len(first) + len(second) == 12
    for ours, theirs in zip(first + second, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert equal(whole, resumed)  # in 64 bits, which a checkpoint must not round to 32


def test_a_resumed_run_takes_the_options_and_the_length_that_are_given(trainer, tmp_path):
    first = trainer(max_steps=4)
    first.fit(SMALL(lr=0.5), NamesDataModule(num_words=50))
    first.save_checkpoint(tmp_path / "first.ckpt")
    record = Record()
    second = trainer(max_steps=8, callbacks=[record])
    model = SMALL(lr=0.9, weight_decay=0.125)
    second.fit(model, NamesDataModule(num_words=50), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    # By hand: of eight steps, those after the fourth take 4/8, 3/8, 2/8 and 1/8 of lr, over 0.9.
    assert record.lrs == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert second.optimizers[0].param_groups[0]["weight_decay"] == 0.125


def test_a_finder_of_lightnings_comes_before_the_run(trainer):
    record, model = Record(), MLP(schedule="constant")
    fit = trainer(max_steps=5, callbacks=[LearningRateFinder(num_training_steps=30), record])
    fit.fit(model, NamesDataModule(num_words=100))
    assert fit.global_step == 5
    assert record.lrs[-5:] == [model.hparams["lr"]] * 5
    assert model.hparams["lr"] != 0.04


# Blocks of updates.


def test_blocks_are_the_updates_of_the_notebooks_loop(trainer):
    model, data = SGD(init="lecture"), NamesDataModule(**BLOCKS)
    theirs = {name: tensor.detach().double().requires_grad_() for name, tensor in model.named_parameters()}
    fit = trainer(max_epochs=3, precision="64-true")
    fit.fit(model, data)
    assert (fit.global_step, updates(fit), total_updates(fit)) == (9, 39, 39)
    losses = []
    for update in range(39):
        loss = notebook.negative_log_likelihood(theirs, *data.train_dataloader().batch(update))
        gradients = torch.autograd.grad(loss, list(theirs.values()))
        for parameter, gradient in zip(theirs.values(), gradients, strict=True):
            parameter.data -= (0.1 if update < 19.5 else 0.01) * gradient
        losses.append(loss.item())
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor.data, theirs[name].data, rtol=1e-10, atol=1e-12)
    assert fit.callback_metrics["train/loss"].item() == pytest.approx(losses[-1], rel=1e-6)  # of the last block of one


def test_logs_of_blocks_count_updates(trainer, tmp_path):
    logger = CSVLogger(tmp_path, "", "")
    trainer(max_epochs=3, logger=logger, log_every_n_steps=1).fit(SGD(), NamesDataModule(**BLOCKS))
    header, *rows = (row.split(",") for row in (tmp_path / "metrics.csv").read_text().split())
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [6, 12, 13, 19, 25, 26, 32, 38, 39]
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [13, 26, 39]
    # 39 updates: the twentieth is the last of the first half.
    rates = [float(row["lr-SGD"]) for row in rows if row["lr-SGD"]]
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 5)


@pytest.mark.parametrize("limit", [{}, {"limit_train_batches": 2}])
def test_blocks_resume_to_the_bit(limit, trainer, tmp_path):
    def run(epochs=3, ckpt_path=None, data=BLOCKS):
        saving = ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
        )
        fit = trainer(max_epochs=epochs, callbacks=[saving], enable_checkpointing=True, **limit)
        model = SGD()
        fit.fit(model, NamesDataModule(**data), ckpt_path=ckpt_path, weights_only=True)
        return model, fit

    whole, fit = run()
    for step in (12, 25) if not limit else (12, 19):
        resumed, again = run(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert equal(whole, resumed)
        assert updates(again) == updates(fit) == (26 if limit else 39)
        assert again.callback_metrics["val/loss"] == fit.callback_metrics["val/loss"]
    with pytest.raises(ValueError, match="other blocks: resume with its steps_per_execution and steps_per_epoch"):
        run(
            ckpt_path=tmp_path / "step=19.ckpt",
            data=BLOCKS | {"steps_per_execution": 3},
        )


class Own(MLP):
    def hidden(self, X):
        return super().hidden(X) * 2


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


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [
        (MLP, {}, {}),
        (partial(Own, optimizer="sgd"), {}, {}),
        (partial(Sharp, optimizer="sgd"), {}, {}),
        (SGD, {"replacement": False}, {}),
        (SGD, {"smoothing": 0.5}, {}),
        (SGD, {}, {"precision": "bf16-mixed"}),
        (SGD, {}, {"accumulate_grad_batches": 2}),
        (SGD, {}, {"gradient_clip_val": 1.0}),
    ],
)
def test_what_blocks_cannot_do_is_one_line(model, data, options, trainer):
    with pytest.raises(ValueError, match=r"^steps_per_execution is 6: expected 1.*$"):
        trainer(max_epochs=1, **options).fit(model(), NamesDataModule(**BLOCKS | data))


def test_blocks_end_by_epochs(trainer):
    with pytest.raises(ValueError, match=r"^max_steps is 10: expected -1 .* --trainer.max_epochs, .*$"):
        trainer(max_steps=10).fit(SGD(), NamesDataModule(**BLOCKS))
    fit = trainer(fast_dev_run=2)
    fit.fit(SGD(), NamesDataModule(**BLOCKS))
    assert updates(fit) == 12


def test_a_subclass_may_optimize_by_hand(trainer):
    model, before = Sharp(hidden_size=8), SMALL()
    fit = trainer(max_steps=5)
    fit.fit(model, NamesDataModule(num_words=50))
    assert (model.automatic_optimization, fit.global_step) == (False, 5)
    assert not torch.equal(model.W1, before.W1)


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
    assert equal(loaded, model)
    assert loaded.sample(5, prompt="zo", seed=3) == model.sample(5, prompt="zo", seed=3)


def test_loading_takes_lightnings_arguments(saved, tmp_path):
    path = saved(SMALL())
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"]["b2"]
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match="b2"):
        MLP.load_from_checkpoint(path)
    (tmp_path / "hparams.yaml").write_text("hidden_size: 8\nlr: 0.5\n")
    loaded = MLP.load_from_checkpoint(path, hparams_file=tmp_path / "hparams.yaml", strict=False)
    assert (loaded.hparams["lr"], len(loaded.vocabulary)) == (0.5, 27)
    load = partial(MLP.load_from_checkpoint, path, strict=False, map_location=lambda storage, device: storage)
    assert load(lr=0.25).hparams["lr"] == 0.25


class Trap:
    def __reduce__(self):
        return open, ("executed", "w")


def test_loading_executes_nothing(saved, tmp_path, monkeypatch):
    path = saved(SMALL())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(torch.load(path, weights_only=True) | {"trap": Trap()}, path)
    for options in ({}, {"weights_only": False}):
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            MLP.load_from_checkpoint(path, **options)
    assert not (tmp_path / "executed").exists()


class Slower(MLP):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.001)


def test_another_network_is_refused_and_another_optimizer_is_not(saved, trainer):
    path = saved(Slower(hidden_size=8))
    assert MLP.load_from_checkpoint(path).hparams["hidden_size"] == 8
    path = saved(Own(hidden_size=8))
    assert Own.load_from_checkpoint(path).hparams["hidden_size"] == 8
    message = r"^the checkpoint holds the network of Own, not of MLP: use CLI\(Own\) or Own.load_from_checkpoint$"
    with pytest.raises(ValueError, match=message):
        MLP.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=message):
        trainer().validate(SMALL(), NamesDataModule(num_words=50), ckpt_path=path, weights_only=True, verbose=False)
    with pytest.raises(ValueError, match="the network of MLP, not of Own"):
        Own.load_from_checkpoint(saved(SMALL()))


def test_a_checkpoint_of_another_alphabet_is_refused(saved, trainer, towns):
    path, data = saved(SMALL()), NamesDataModule(str(towns[0]))
    with pytest.raises(ValueError, match=r"^the checkpoint's vocabulary is another than the model's: only one .*$"):
        trainer(max_steps=4).fit(SMALL(data.vocabulary.characters), data, ckpt_path=path, weights_only=True)
