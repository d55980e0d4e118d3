import inspect

import notebook
import pytest
import torch
import yaml
from conftest import ROOT
from test_cli import scalars

from makemore_pl import MLP, NamesDataModule
from makemore_pl.commands import cli

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def test_recipes_are_found():
    assert {"notebook", "lecture"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_restates_no_default(path, call):
    status, out, err = call("fit", "--config", path, "--print_config")
    assert status == 0, err
    parsed, recipe = yaml.safe_load(out), yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = {
        "trainer": {
            name: parameter.default for name, parameter in inspect.signature(cli.Trainer.__init__).parameters.items()
        }
        | cli.TRAINER_DEFAULTS,
        "model": {name: parameter.default for name, parameter in inspect.signature(MLP).parameters.items()},
        "data": {name: parameter.default for name, parameter in inspect.signature(NamesDataModule).parameters.items()},
    }
    for group, options in recipe.items():
        for name, value in options.items():
            assert parsed[group][name] == value
            assert defaults[group][name] != value, f"{group}.{name} restates the default"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_known_by_its_name_in_any_folder(path, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call("fit", "--config", path.stem, "--print_config") == call("fit", "--config", path, "--print_config")


def test_a_file_comes_before_a_recipe_of_its_name(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").write_text("model:\n  hidden_size: 7\n")
    _, out, _ = call("fit", "--config", "quick", "--print_config")
    assert yaml.safe_load(out)["model"]["hidden_size"] == 7


@pytest.mark.parametrize("given", [["--config", "lectur"], ["--config", "configs/none.yaml"], ["--config"]])
def test_a_recipe_that_is_none_is_answered_with_their_names(given, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("fit", *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.endswith(", ".join(path.stem for path in RECIPES) + "\n")


def test_the_notebook_recipe_is_the_seed_run(command, tmp_path, names):
    fit = command("fit", "--config", ROOT / "configs/notebook.yaml", cwd=tmp_path)
    assert fit.returncode == 0, fit.stderr
    run = tmp_path / "lightning_logs/version_0"
    parameters = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert sum(tensor.numel() for tensor in parameters.values()) == 3481
    X, Y = notebook.build_dataset(names[:5], notebook.stoi(names))
    assert notebook.negative_log_likelihood(parameters, X, Y).item() == pytest.approx(0.2561, abs=0.0003)
    losses = [loss for _, loss in scalars(run)["train/loss"]]
    assert len(losses) == 1000
    assert losses[0] == pytest.approx(17.7697, abs=5e-5)
    assert losses[-1] == pytest.approx(0.25615, abs=0.0003)


def test_the_lecture_recipe_begins_as_the_lecture(call, tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_steps", 2000, "--data.steps_per_epoch", 1000]
    status, _, err = call("fit", "--config", ROOT / "configs/lecture.yaml", *short)
    assert status == 0, err
    curves = scalars(tmp_path / "lightning_logs/version_0")
    assert curves["lr-SGD"][0][1] == pytest.approx(0.1)
    assert curves["lr-SGD"][-1][1] == pytest.approx(0.01)
    _, val, _ = notebook.split(names)
    X, Y = notebook.build_dataset(val, notebook.stoi(names))
    untrained = notebook.negative_log_likelihood(notebook.parameters(E=10, H=200), X, Y).item()
    (_, first), (_, second) = curves["val/loss"]
    assert untrained / 2 > first > second
