import io
import logging
import math
import re

import notebook
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from test_ngram import kneser_ney

from makemore_pl import MLP, NamesDataModule
from makemore_pl.pictures.board import Board, frequent_contexts
from makemore_pl.windows import Counts

SGD = {"optimizer": "sgd", "lr": 0.1, "schedule": "constant"}
PICTURES = ["pictures/letters", "pictures/next_character", "pictures/saturated"]


def fit(folder, *callbacks, model=None, data=None, logger=None, ckpt_path=None, **options):
    """Returns the Trainer and the model."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    sparse = {"log_every_n_steps": 5, "val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 47}
    trainer = Trainer(
        logger=logger or TensorBoardLogger(folder, "", "run", default_hp_metric=False),
        callbacks=list(callbacks),
        num_sanity_val_steps=1,
        accelerator="cpu",
        **quiet | sparse | options,
    )
    module = MLP(**{"hidden_size": 16} | (model or {}))
    trainer.fit(module, NamesDataModule(**{"num_words": 60} | (data or {})), ckpt_path=ckpt_path)
    return trainer, module


def events(run):
    every = dict.fromkeys(["images", "scalars", "histograms", "tensors"], 0)
    return EventAccumulator(str(run), size_guidance=every).Reload()


def steps(of):
    return sorted(event.step for event in of)


@pytest.fixture(autouse=True)
def no_picture_fails(request, caplog):
    yield
    if "reason" not in request.fixturenames:
        assert "pictures are off" not in caplog.text


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A short run with a board. Gives (folder, model)."""
    folder = tmp_path_factory.mktemp("board")
    _, model = fit(folder, Board(), model=SGD, precision="64-true")
    return folder / "run", model


def test_one_run_is_one_row_with_all_charts(shown):
    run, _ = shown
    assert {path.parent for path in run.parent.rglob("*events*")} == {run}
    found = events(run)
    weights = {f"weights/{name}" for name in ("C", "W1", "b1", "W2", "b2")}
    assert weights | {"tanh/h"} == set(found.Tags()["histograms"])
    assert set(PICTURES) == set(found.Tags()["images"])
    (event,) = found.Tensors("custom_scalars__config__")
    patterns = Layout.FromString(event.tensor_proto.string_val[0]).category[0].chart[0].multiline.tag
    drawn = {tag for tag in found.Tags()["scalars"] if any(re.match(pattern, tag) for pattern in patterns)}
    assert drawn == {"train/loss", "val/loss", "val/loss_kneser_ney"}


def test_pictures_come_at_the_start_at_the_end_and_few_between(shown):
    found = events(shown[0])
    for tag in PICTURES:
        assert steps(found.Images(tag)) == [0, 4, 20, 47]
    assert steps(found.Histograms("weights/C")) == steps(found.Tensors("sampled_names/text_summary")) == [0, 4, 20, 47]


def test_a_resumed_run_goes_on(tmp_path):
    trainer, _ = fit(tmp_path, Board(), max_steps=24)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(tmp_path, Board(), max_steps=60, ckpt_path=tmp_path / "last.ckpt")
    # Two files of one second may be read in another order.
    assert steps(events(tmp_path / "run").Images("pictures/letters")) == [0, 4, 20, 24, 24, 60]


@pytest.mark.parametrize(("model", "data"), [({}, {}), (SGD, {"batch_size": 16})], ids=["counted", "minibatch"])
def test_the_training_does_not_notice(model, data, tmp_path, capsys):
    random = torch.get_rng_state()
    _, ours = fit(tmp_path / "with", Board(), model=model, data=data)
    assert torch.equal(torch.get_rng_state(), random)
    _, theirs = fit(tmp_path / "without", model=model, data=data)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])
    assert capsys.readouterr().out == ""


def test_the_update_to_data_ratio_is_the_lectures(shown, names):
    """For plain SGD: the logarithm of lr * std(gradient) / std(data), after the step."""
    X, Y = notebook.build_dataset(notebook.split(names[:60])[0], notebook.stoi(names))
    weights = {name: tensor.double() for name, tensor in MLP(hidden_size=16).state_dict().items()}
    expected = []
    for _ in range(47):
        for tensor in weights.values():
            tensor.requires_grad_()
        gradients = torch.autograd.grad(notebook.negative_log_likelihood(weights, X, Y), list(weights.values()))
        pairs = list(zip(weights, gradients, strict=True))
        weights = {name: (weights[name] - 0.1 * gradient).detach() for name, gradient in pairs}
        expected.append({name: (0.1 * gradient.std() / weights[name].std()).log10().item() for name, gradient in pairs})
    for name in ("C", "W1", "W2"):
        ratios = events(shown[0]).Scalars(f"update_to_data/{name}")
        assert steps(ratios) == list(range(5, 47, 5))
        for event in ratios:
            assert event.value == pytest.approx(expected[event.step - 1][name], abs=1e-4)


def test_the_saturated_units_are_those_of_the_lecture(shown, names):
    run, model = shown
    X, _ = notebook.build_dataset(notebook.split(names[:60])[0], notebook.stoi(names))
    contexts = torch.unique(X, dim=0)
    rows = contexts[torch.linspace(0, len(contexts) - 1, min(200, len(contexts))).long()]
    weights = model.state_dict()
    h = torch.tanh(weights["C"][rows].view(len(rows), -1) @ weights["W1"] + weights["b1"])
    image = Image.open(io.BytesIO(events(run).Images("pictures/saturated")[-1].encoded_image_string))
    assert np.array_equal(np.asarray(image.convert("L")) == 255, (h.abs() > 0.99).numpy())


def test_counting_is_a_level_line_beside_the_loss(shown, names):
    line = events(shown[0]).Scalars("val/loss_kneser_ney")
    assert steps(line) == [0, 4, 20, 47]
    train, val, _ = notebook.split(names[:60])
    X, Y = notebook.build_dataset(val, notebook.stoi(names))
    slow = kneser_ney(train, 3, notebook.stoi(names))
    nll = [-math.log(slow(tuple(x), y)) for x, y in zip(X.tolist(), Y.tolist(), strict=True)]
    assert [event.value for event in line] == pytest.approx([sum(nll) / len(nll)] * 4, rel=1e-6)


def test_the_heat_map_shows_the_most_frequent_contexts():
    X = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 1]])
    counts = torch.tensor([[0, 2, 1], [0, 0, 1], [2, 0, 0], [0, 3, 1]])
    row, y = counts.nonzero(as_tuple=True)
    assert frequent_contexts(Counts(X, row, y, counts[row, y], 3)).tolist() == [[0, 0], [0, 1], [2, 1], [1, 2]]


def test_names_stand_with_their_split(shown, names):
    run, model = shown
    sampled = model.float().sample(10)
    splits = dict(zip(["train", "val", "test"], notebook.split(names[:60]), strict=True))
    where = [next((split for split, words in splits.items() if name in words), "new") for name in sampled]
    rows = [f"    {split:5}  {name}" for name, split in zip(sampled, where, strict=True)]
    written = events(run).Tensors("sampled_names/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert written.split("\n") == rows


def test_the_table_of_runs_shows_what_a_learner_changes(shown):
    found = events(shown[0])
    content = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["val/loss"]
    metadata = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    chosen = HParamsPluginData.FromString(metadata).session_start_info.hparams
    assert set(chosen) == {"batch_size", "embedding_dim", "hidden_size", "lr", "optimizer"}
    assert (chosen["hidden_size"].number_value, chosen["lr"].number_value) == (16, 0.1)
    assert len({event.value for event in found.Scalars("val/loss") if event.step == 47}) == 1


def test_the_projector_has_the_letters_of_thousands_the_most_frequent(tmp_path):
    han = list(map(chr, range(0x4E00, 0x4E00 + 1500)))
    words = [a + b for a, b in zip(han, han[700:] + han[1000:1400] * 2, strict=False)]
    (tmp_path / "list.txt").write_text("\n".join(words), encoding="utf-8")
    data = {"path": str(tmp_path / "list.txt"), "num_words": None}
    _, model = fit(tmp_path, Board(), data=data, model={"vocabulary": "".join(han), "embedding_dim": 2}, max_steps=3)
    folder = tmp_path / "run" / "00003" / "C"
    header, *rows = (folder / "metadata.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    assert (header, rows[0], len(rows)) == ("letter\tkind", ".\tboundary", 101)
    numbers = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    expected = model.C.detach().numpy()[[0, *(1 + han.index(row[0]) for row in rows[1:])]]
    np.testing.assert_allclose(numbers[:, :2], expected, rtol=1e-6)
    assert not numbers[:, 2].any()  # it shows nothing of less than three dimensions
    assert steps(events(tmp_path / "run").Images("pictures/next_character")) == [0, 3]


class Spoil(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.W1.data[0, 0] = torch.nan


class NoRoom(Board):
    def draw(self, trainer, model):
        raise OSError("No space left\non device")


@pytest.mark.parametrize(
    ("callbacks", "reason"),
    [
        ([Spoil, Board], "ValueError: a weight is not finite after 4 updates"),
        ([NoRoom], "OSError: No space left on device"),
    ],
)
def test_what_goes_wrong_is_said_once_and_the_run_goes_on(callbacks, reason, tmp_path, caplog):
    trainer, _ = fit(tmp_path, *(callback() for callback in callbacks))
    assert trainer.global_step == 47
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in lines if "pictures" in line] == [f"pictures are off: {reason}"]


def test_another_logger_has_no_pictures(tmp_path):
    fit(tmp_path, Board(), logger=CSVLogger(tmp_path))
    assert not list(tmp_path.rglob("*events*"))
