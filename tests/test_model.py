import math

import notebook
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import nn

from makemore_pl import MLP, NamesDataModule, Vocabulary, windows
from makemore_pl.windows import build_windows, count_windows


@pytest.fixture(scope="module")
def first_five(names):
    return notebook.build_dataset(names[:5], notebook.stoi(names))


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **quiet | {"enable_checkpointing": False, "max_steps": 8} | options)


def test_the_model_prints_its_five_tensors():
    # 26 letters and the boundary; 3 x 10 numbers of context; 200 units.
    assert str(MLP()) == "MLP(C (27, 10), W1 (30, 200), b1 (200,), W2 (200, 27), b2 (27,))"


def test_five_tensors_and_nothing_else():
    model = MLP(block_size=4, embedding_dim=5, hidden_size=6)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {"C": (27, 5), "W1": (20, 6), "b1": (6,), "W2": (6, 27), "b2": (27,)}


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


def test_another_seed_begins_elsewhere():
    assert not torch.equal(MLP(seed=1).C, MLP(seed=2).C)


def test_the_lookup_is_one_hot_times_C_and_the_view_is_a_concatenation(first_five):
    X, _ = first_five
    model = MLP().double()
    emb = F.one_hot(X, 27).double() @ model.C
    joined = torch.cat(torch.unbind(emb, 1), 1)
    logits = torch.tanh(joined @ model.W1 + model.b1) @ model.W2 + model.b2
    torch.testing.assert_close(model(X), logits, rtol=0, atol=1e-14)


def test_softmax_rows_sum_to_one(first_five):
    rows = torch.softmax(MLP(init="lecture")(first_five[0]), dim=1).sum(1)
    torch.testing.assert_close(rows, torch.ones(32))


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


def test_both_views_of_all_names_have_one_loss_and_one_gradient(names):
    vocabulary = Vocabulary.from_words(names)
    X, Y = build_windows(names, vocabulary, 3)
    counted = count_windows(X, Y, len(vocabulary))
    contexts, counts = counted.contexts, counted[:]
    assert (len(X), len(contexts)) == (228146, len({tuple(x) for x in X.tolist()}))
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
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"lr": -0.1}, "lr is -0.1: expected 0 or more"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
        ({"momentum": 1.0}, "momentum is 1: expected 0 or more, less than 1"),
        ({"momentum": float("nan")}, "momentum is nan"),
        ({"init": "random"}, "init is random: expected lecture or scaled"),
        ({"optimizer": "adam"}, "optimizer is adam: expected adamw or sgd"),
        ({"schedule": "none"}, "schedule is none: expected constant or linear or halfway"),
    ],
)
def test_hyperparameters_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MLP(**options)


class Record(Callback):
    """Keeps the learning rate and the batch of every step."""

    def __init__(self):
        self.lrs, self.batches = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.batches.append([tensor.clone() for tensor in batch])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.875 / 0.9, 0.75 / 0.9, 0.625 / 0.9, 0.5 / 0.9, 0.375 / 0.9, 0.25 / 0.9, 0.125 / 0.9]),
        ("halfway", [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
@pytest.mark.parametrize("counted_in", [{"max_steps": 8}, {"max_steps": -1, "max_epochs": 4, "limit_train_batches": 2}])
def test_schedules(schedule, expected, counted_in, tmp_path):
    record = Record()
    data = NamesDataModule(num_words=50, batch_size=20)
    model = MLP(hidden_size=8, lr=0.5, schedule=schedule)
    trainer(tmp_path, callbacks=[record], **counted_in).fit(model, data)
    assert record.lrs == pytest.approx([0.5 * factor for factor in expected])


@pytest.mark.parametrize("schedule", ["constant", "linear", "halfway"])
def test_without_an_end_the_learning_rate_stays(schedule, tmp_path):
    record = Record()
    data = NamesDataModule(num_words=50)
    model = MLP(hidden_size=8, lr=0.5, schedule=schedule)
    ends = {"max_steps": -1, "max_epochs": -1, "max_time": {"seconds": 1}}
    trainer(tmp_path, callbacks=[record], **ends).fit(model, data)
    assert record.lrs == [0.5] * len(record.lrs)
    assert record.lrs


def test_the_linear_schedule_rises_over_the_first_tenth(tmp_path):
    record = Record()
    data = NamesDataModule(num_words=50)
    trainer(tmp_path, callbacks=[record], max_steps=40).fit(MLP(hidden_size=8, lr=0.9), data)
    # By hand: 40 steps rise by 1/4 of lr to step 4, then fall by 1/36 of it to nothing at step 40.
    expected = [0.225, 0.45, 0.675] + [0.025 * (40 - step) for step in range(4, 40)]
    assert record.lrs[:3] + record.lrs[4:] == pytest.approx(expected)
    assert record.lrs[3] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("optimizer", "options", "betas"),
    [("sgd", {}, None), ("adamw", {}, (0.85, 0.95)), ("adamw", {"momentum": 0.7}, (0.7, 0.9))],
)
def test_training_is_the_notebooks_loop_with_torchs_optimizer(optimizer, options, betas, names, tmp_path):
    options = {"init": "lecture", "optimizer": optimizer, "lr": 0.05, "schedule": "constant", **options}
    model = MLP(embedding_dim=2, hidden_size=100, **options)
    data = NamesDataModule(num_words=5, counted=False, train_fraction=1, val_fraction=0)
    trainer(tmp_path, max_steps=20, precision="64-true").fit(model, data)

    X, Y = notebook.build_dataset(names[:5], notebook.stoi(names))
    parameters = {name: tensor.double().requires_grad_() for name, tensor in notebook.parameters().items()}
    adamw = torch.optim.AdamW(parameters.values(), lr=0.05, betas=betas or (0.0, 0.0), weight_decay=0.3)
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


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("rows", [7, 1000, 10**6])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_exact_over_the_split_whatever_the_batches(counted, rows, stage, names, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "CELLS_AT_ONCE", 27 * rows)
    words = names[:2000]
    data = NamesDataModule(num_words=2000, counted=counted)
    if not counted:  # the Trainer is given the examples themselves
        monkeypatch.setattr(data, "view", lambda split, counted, view=data.view: view(split, counted=False))
    model = MLP(init="lecture")
    evaluate = {"val": "validate", "test": "test"}[stage]
    (metrics,) = getattr(trainer(tmp_path), evaluate)(model, data, verbose=False)

    X, Y = notebook.build_dataset(notebook.split(words)[1 if stage == "val" else 2], notebook.stoi(names))
    loss = notebook.negative_log_likelihood(model.state_dict(), X, Y).item()
    hits = sum(int(model(x[None]).argmax()) == y for x, y in zip(X, Y.tolist(), strict=True))
    assert metrics[f"{stage}/loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics[f"{stage}/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert metrics[f"{stage}/bits_per_character"] == pytest.approx(math.log2(math.exp(loss)), rel=1e-5)
    assert metrics[f"{stage}/accuracy"] == pytest.approx(hits / len(Y), rel=1e-9)
    assert len(metrics) == 4


@pytest.mark.parametrize(
    "options", [{"batch_size": 100}, {"counted": False, "batch_size": 64, "replacement": True}, {}]
)
@pytest.mark.parametrize("stop", [5, 7])
def test_a_resumed_run_is_the_run_that_never_stopped(options, stop, tmp_path):
    def run(max_steps, ckpt_path=None):
        # The schedule is told of 12 steps whatever happens: an interrupted run had meant to go on.
        model = MLP(hidden_size=16, schedule="constant")
        record = Record()
        fit = trainer(tmp_path, max_steps=max_steps, callbacks=[record], enable_checkpointing=True)
        fit.fit(model, NamesDataModule(num_words=60, **options), ckpt_path=ckpt_path, weights_only=True)
        return model, fit, record.batches

    whole, _, batches = run(12)
    _, stopped, first = run(stop)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    resumed, _, second = run(12, tmp_path / "stopped.ckpt")
    assert len(first) + len(second) == 12
    for ours, theirs in zip(first + second, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_a_resumed_run_takes_the_lr_weight_decay_and_momentum_it_is_asked_for(tmp_path):
    record = Record()
    data = NamesDataModule(num_words=50)
    first = trainer(tmp_path, max_steps=4)
    first.fit(MLP(hidden_size=8, lr=0.5, schedule="constant"), data)
    first.save_checkpoint(tmp_path / "first.ckpt")
    model = MLP(hidden_size=8, lr=0.25, schedule="constant", weight_decay=0.125, momentum=0.7)
    second = trainer(tmp_path, max_steps=8, callbacks=[record])
    second.fit(model, data, ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    assert record.lrs == [0.25] * 4
    (group,) = second.optimizers[0].param_groups
    assert group["weight_decay"] == 0.125
    assert group["betas"] == pytest.approx((0.7, 0.9))


def test_a_checkpoint_of_another_alphabet_is_refused(tmp_path, towns):
    first = trainer(tmp_path, max_steps=1)
    first.fit(MLP(hidden_size=8), NamesDataModule(num_words=50))
    first.save_checkpoint(tmp_path / "first.ckpt")
    data = NamesDataModule(str(towns[0]))
    with pytest.raises(ValueError, match=r"the checkpoint's characters are 'abc.*those of the list"):
        trainer(tmp_path, max_steps=2).fit(
            MLP(data.vocabulary.characters, hidden_size=8), data, ckpt_path=tmp_path / "first.ckpt", weights_only=True
        )


def test_a_checkpoint_loads_in_one_line_and_samples_in_another(tmp_path, towns):
    data = NamesDataModule(str(towns[0]))
    model = MLP(data.vocabulary.characters, block_size=2, hidden_size=8)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, NamesDataModule(str(towns[0]), block_size=2))
    fit.save_checkpoint(tmp_path / "towns.ckpt")
    plain = torch.load(tmp_path / "towns.ckpt", weights_only=True)["hyper_parameters"]
    assert {type(value) for value in plain.values()} <= {str, int, float}

    loaded = MLP.load_from_checkpoint(tmp_path / "towns.ckpt", weights_only=True)
    assert loaded.vocabulary == data.vocabulary
    sampled = loaded.sample(5, prompt="Zo", seed=3, max_length=9)
    assert sampled == model.sample(5, prompt="Zo", seed=3, max_length=9)
    assert all(name.startswith("Zo") and len(name) <= 9 for name in sampled)
