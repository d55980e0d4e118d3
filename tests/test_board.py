import re

import notebook
import pytest
import torch
from conftest import Dropout
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from makemore_pl import MLP, NamesDataModule
from makemore_pl.pictures.board import Board

SGD = {"optimizer": "sgd", "lr": 0.1, "schedule": "constant"}
STEPS = [0, 4, 20, 47]  # of the pictures: the start, the first validation, the one five times as far, the end


def fit(folder, *callbacks, kind=MLP, model=None, data=None, logger=None, **options):
    """Returns the Trainer and the model."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    sparse = {"log_every_n_steps": 5, "val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 47}
    logger = logger or TensorBoardLogger(folder, "", "run", default_hp_metric=False)
    trainer = Trainer(logger=logger, callbacks=list(callbacks), accelerator="cpu", **quiet, **sparse, **options)
    module = kind(hidden_size=16, **(model or {}))
    trainer.fit(module, NamesDataModule(num_words=60, **(data or {})))
    return trainer, module


def steps(of):
    return sorted(event.step for event in of)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A short run with a board. Gives (folder, what TensorBoard reads from it, model)."""
    folder = tmp_path_factory.mktemp("board")
    _, model = fit(folder, Board(), model=SGD, precision="64-true")
    every = dict.fromkeys(["images", "scalars", "histograms", "tensors"], 0)
    return folder / "run", EventAccumulator(str(folder / "run"), size_guidance=every).Reload(), model


def test_one_run_is_one_row_with_all_charts(shown):
    run, found, _ = shown
    assert {path.parent for path in run.parent.rglob("*events*")} == {run}
    (event,) = found.Tensors("custom_scalars__config__")
    patterns = Layout.FromString(event.tensor_proto.string_val[0]).category[0].chart[0].multiline.tag
    drawn = {tag for tag in found.Tags()["scalars"] if any(re.match(pattern, tag) for pattern in patterns)}
    assert drawn == {"train/loss", "val/loss", "val/loss_kneser_ney"}


def test_pictures_come_at_the_start_at_the_end_and_few_between(shown):
    _, found, _ = shown
    for tag in ("pictures/letters", "pictures/next_character", "pictures/saturated"):
        assert steps(found.Images(tag)) == STEPS
    for tag in ("tanh/h", *(f"weights/{name}" for name in ("C", "W1", "b1", "W2", "b2"))):
        assert steps(found.Histograms(tag)) == STEPS
    assert steps(found.Tensors("sampled_names/text_summary")) == steps(found.Scalars("val/loss_kneser_ney")) == STEPS


@pytest.mark.parametrize(
    "options",
    [{}, {"model": SGD, "data": {"batch_size": 16}}, {"kind": Dropout}],
    ids=["counted", "minibatch", "dropout"],
)
def test_the_training_does_not_notice(options, tmp_path):
    ends = []
    for callbacks in [Board()], []:
        torch.manual_seed(1)
        _, model = fit(tmp_path / str(len(callbacks)), *callbacks, **options)
        ends.append([*model.parameters(), torch.get_rng_state()])
    assert all(map(torch.equal, *ends))


def test_names_stand_with_their_split(shown, names):
    _, found, model = shown
    splits = dict(zip(["train", "val", "test"], notebook.split(names[:60]), strict=True))
    written = found.Tensors("sampled_names/text_summary")[-1].tensor_proto.string_val[0].decode()
    sampled = model.float().sample(10)
    where = [next((split for split, words in splits.items() if name in words), "new") for name in sampled]
    assert written.split("\n") == [f"    {split:5}  {name}" for name, split in zip(sampled, where, strict=True)]


def test_the_table_of_runs_shows_what_a_learner_changes(shown):
    metadata = shown[1].SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    chosen = HParamsPluginData.FromString(metadata).session_start_info.hparams
    assert set(chosen) == {"batch_size", "embedding_dim", "hidden_size", "lr", "optimizer"}
    assert (chosen["hidden_size"].number_value, chosen["lr"].number_value) == (16, 0.1)


def test_another_logger_has_no_pictures(tmp_path):
    fit(tmp_path, Board(), logger=CSVLogger(tmp_path))
    assert not list(tmp_path.rglob("*events*"))
