import string
from collections import Counter

import notebook
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from test_ngram import kneser_ney

from makemore_pl import NamesDataModule, Vocabulary


class Net(LightningModule):
    """Learns how frequent each character is."""

    def __init__(self, seed=5):
        super().__init__()
        self.save_hyperparameters()
        self.b = torch.nn.Parameter(torch.zeros(27))

    def training_step(self, batch, batch_idx):
        X, Y = batch
        return F.cross_entropy(self.b.expand(len(X), 27), Y if Y.ndim == 1 else Y.float())

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Seen(Callback):
    """The contexts of each batch, by epochs."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs[-1].append(batch[0].tolist())


def few(**options):
    return NamesDataModule(num_words=200, **{"batch_size": 32} | options)


def quiet(*callbacks, **options):
    plain = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(callbacks=list(callbacks), **plain | {"enable_checkpointing": False} | options)


def in_order(number, seed=5):
    """The contexts of the first batches."""
    data = few()
    quiet(max_steps=0).fit(Net(seed), data)
    loader = data.train_dataloader()
    return [loader.batch(update)[0].tolist() for update in range(number)]


# The list and its splits.


def test_the_splits_are_the_windows_of_the_lecture(names):
    data = NamesDataModule(batch_size=32)
    data.setup("fit")
    for split, words, windows in zip(data.splits, notebook.split(names), [182518, 22939, 22689], strict=True):
        X, Y = notebook.build_dataset(words, notebook.stoi(names))
        assert len(X) == windows
        if split == "train":
            assert torch.equal(data.tensors["train"][0], X)
            assert torch.equal(data.tensors["train"][1], Y)
        else:  # counted
            contexts, counts = data.loader(split).tensors
            rows = torch.cat([contexts[counts.row], counts.y[:, None]], dim=1)
            assert dict(zip(map(tuple, rows.tolist()), counts.n.tolist(), strict=True)) == Counter(
                (*x, y) for x, y in zip(X.tolist(), Y.tolist(), strict=True)
            )


def test_few_words_of_a_list_keep_its_alphabet():
    data = NamesDataModule(num_words=50)
    assert len(data.words) == 50
    assert data.vocabulary.characters == string.ascii_lowercase


def test_without_words_held_back_validation_runs_on_the_training_words():
    data = NamesDataModule(num_words=5, train_fraction=1, val_fraction=0)
    assert data.splits["val"] == data.splits["train"]
    with pytest.raises(ValueError, match="no words in the test split: give it a larger share, or add words"):
        data.test_dataloader()


def test_words_are_found_in_the_first_split_that_has_them(names):
    data, (train, val, test) = NamesDataModule(), map(set, notebook.split(names))
    asked = [*names[::100], "", "notaname", "Emma", *sorted(train & val & test)[:5], *sorted(val & test - train)[:5]]
    expected = ["train" if w in train else "val" if w in val else "test" if w in test else "new" for w in asked]
    assert set(expected) == {"train", "val", "test", "new"}
    assert data.where(asked) == expected
    assert data.unseen(data.splits["val"]) == [word for word in data.splits["val"] if word not in train]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_words": 0}, "num_words is 0: expected 1 or more"),
        ({"replacement": True}, "replacement needs a batch_size"),
        ({"smoothing": 1.1}, "smoothing is 1.1: expected a share from 0 to 1"),
    ],
)
def test_an_option_outside_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        NamesDataModule(**options)


# Targets.


@pytest.mark.parametrize("batch_size", [None, 32])
def test_smoothed_targets_are_what_came_and_what_counting_expects(batch_size):
    # Those of minibatches are made when they are taken: 349,046 words of 12,045 characters would take 46 GB.
    data = NamesDataModule(num_words=400, batch_size=batch_size, smoothing=0.3, block_size=2)
    data.setup("fit")
    words, stoi = data.splits["train"], {character: i for i, character in enumerate(string.ascii_lowercase, start=1)}
    X, Y = data.tensors["train"]
    slow, came = kneser_ney(words, 2, stoi), {}
    windows = [tensor.tolist() for tensor in notebook.build_dataset(words, stoi, 2)]
    for x, y in zip(*windows, strict=True):
        came.setdefault(tuple(x), torch.zeros(27))[y] += 1
    for row in range(0, len(X), 50):
        x = tuple(X[row].tolist())
        seen = came[x] if batch_size is None else torch.eye(27)[windows[1][row]]
        p = torch.tensor([slow(x, y) for y in range(27)])
        torch.testing.assert_close(Y[row : row + 1][0], 0.7 * seen + 0.3 * seen.sum() * p)
    assert data.loader("val").tensors[1][:].dtype == torch.int64  # what is measured is not smoothed


# The order of batches.


@pytest.mark.parametrize(
    "options",
    [{"max_epochs": 2}, {"max_epochs": 3, "limit_train_batches": 5}, {"max_steps": 6, "accumulate_grad_batches": 7}],
)
def test_batches_follow_each_other_in_the_order_of_the_models_seed_whatever_an_epoch_is(options):
    seen = Seen()
    quiet(seen, **options).fit(Net(seed=6), few())
    batches = [batch for epoch in seen.epochs for batch in epoch]
    assert batches == in_order(len(batches), seed=6)
    assert batches[:3] != in_order(3, seed=5)


def test_a_trainer_that_overfits_some_batches_takes_the_same_in_each_epoch():
    seen = Seen()
    quiet(seen, max_steps=8, overfit_batches=5).fit(Net(), few())
    first = in_order(5)
    assert seen.epochs == [first, first[:3]]


# Together with a Trainer.


def test_loggers_have_the_options_of_the_data_under_names_of_their_own(tmp_path):
    """Also where model and data have an option of the same name with different values."""
    model = Net()
    model.save_hyperparameters({"smoothing": "the model's"})
    quiet(max_steps=1, logger=CSVLogger(tmp_path, "", "")).fit(model, few(smoothing=0.5))
    logged = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
    assert logged["smoothing"] == "the model's"
    assert (logged["data/smoothing"], logged["data/batch_size"], logged["data/num_words"]) == (0.5, 32, 200)
    assert not [name for name in logged if name.startswith("data/_")]


def test_a_checkpoint_has_the_options_and_the_digest_of_the_data(tmp_path):
    data = few(smoothing=0.5)
    trainer = quiet(max_steps=1)
    trainer.fit(Net(), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    found = NamesDataModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert found.hparams == data.hparams
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["NamesDataModule"] == {"digest": data.digest}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("block_size", 4, "^block_size of the model and of the data differ: set both alike$"),
        ("vocabulary", Vocabulary("abé"), "^vocabulary of the model and of the data differ"),
    ],
)
def test_a_model_of_another_shape_is_refused(name, value, message):
    model = Net()
    setattr(model, name, value)
    with pytest.raises(ValueError, match=message):
        quiet(max_steps=1).fit(model, few())
