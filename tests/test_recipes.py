"""The recipes of configs/, which `fit --config NAME` takes."""

import inspect

import notebook
import pytest
import yaml
from conftest import ROOT
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from makemore_pl import MLP, NamesDataModule
from makemore_pl.optimization import total_updates

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def read(name):
    recipe = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    return recipe.get("model", {}), recipe.get("data", {}), recipe["trainer"]


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(trainer.callback_metrics["train/loss"].item())


def fit(name, tmp_path, **limits):
    model_options, data_options, options = read(name)
    losses, model = Losses(), MLP(**model_options)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    quiet |= {"accelerator": "cpu", "logger": CSVLogger(tmp_path, "", ""), "callbacks": [losses]}
    trainer = Trainer(**quiet | options | limits)
    trainer.fit(model, NamesDataModule(**data_options, block_size=model.block_size))
    return model, losses.losses, trainer


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_options_and_restates_no_default(path):
    for options, of in zip(read(path.stem), (MLP, NamesDataModule, Trainer), strict=True):
        parameters = inspect.signature(of).parameters
        for name, value in options.items():
            assert parameters[name].default != value, f"{name} restates the default"


def test_the_notebook_recipe_is_the_seed_run(tmp_path, names, one_thread):
    model, losses, _ = fit("notebook", tmp_path)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3481
    X, Y = notebook.build_dataset(names[:5], notebook.stoi(names))
    assert notebook.negative_log_likelihood(model.state_dict(), X, Y).item() == pytest.approx(0.2561, abs=0.0003)
    assert len(losses) == 1000
    assert losses[0] == pytest.approx(17.7697, abs=5e-5)
    assert losses[-1] == pytest.approx(0.25615, abs=0.0003)


def test_the_lecture_recipe_is_that_of_the_lecture(tmp_path, names, one_thread):
    model, losses, trainer = fit("lecture", tmp_path, max_epochs=1)
    assert {name: tuple(tensor.shape) for name, tensor in model.named_parameters()} == {
        name: tuple(tensor.shape) for name, tensor in notebook.parameters(E=10, H=200).items()
    }
    trainer.fit_loop.max_epochs = read("lecture")[2]["max_epochs"]
    assert total_updates(trainer) == 200_000
    assert next(iter(trainer.train_dataloader))[0].shape == (500, 32, 3)
    _, val, _ = notebook.split(names)
    X, Y = notebook.build_dataset(val, notebook.stoi(names))
    before, after = (
        notebook.negative_log_likelihood(weights, X, Y).item()
        for weights in (notebook.parameters(E=10, H=200), model.state_dict())
    )
    assert after < before / 4
    assert losses[0] > 2 * losses[-1]
