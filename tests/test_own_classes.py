"""Classes of one's own on the command line: a subclass of the model, a logger with folders of its own, a seed."""

import re
import subprocess
import sys

import pytest
import torch

from makemore_pl.durable.checkpoints import lock

OWN = """
import torch
from torch import nn
from lightning.pytorch.loggers import Logger
from makemore_pl import MLP

class Deeper(MLP):
    def __init__(self, *args, factor: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.save_hyperparameters()
        self.factor = factor
        self.W3 = nn.Parameter(torch.eye(len(self.b1)))

    def hidden(self, X):
        return torch.tanh(self.factor * super().hidden(X) @ self.W3)

class Project(Logger):
    name, save_dir = "project", "runs"

    def __init__(self, version: str = "a"):
        super().__init__()
        self.id = version

    @property
    def version(self):
        return self.id

    def log_metrics(self, metrics, step=None): pass
    def log_hyperparams(self, *args, **kwargs): pass

class Stranger: pass
"""
FEW = ["--data.num_words", "60", "--trainer.max_steps", "5", "--model.hidden_size", "8"]
DEEPER = ["--model_class", "own_classes.Deeper", "--trust", "own_classes"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_classes", raising=False)
    return tmp_path


def checkpoint(run=0, name="last"):
    return torch.load(f"lightning_logs/version_{run}/checkpoints/{name}.ckpt", weights_only=True)


def test_a_subclass_trains_resumes_is_judged_and_sampled(folder, call):
    status, names, err = call("fit", *DEEPER, "--model.factor", 1.5, *FEW)
    assert status == 0, err
    assert checkpoint()["hyper_parameters"]["factor"] == 1.5
    assert not torch.equal(checkpoint()["state_dict"]["W3"], torch.eye(8))
    assert call("predict", *DEEPER)[:2] == (0, names)
    for command in ("validate", "test"):
        status, out, err = call(command, *DEEPER)
        assert (status, "network" in out) == (0, True), err
    status, _, err = call("fit", *DEEPER, "--ckpt_path", "last", "--trainer.max_steps", 8)
    assert status == 0, err
    assert checkpoint()["global_step"] == 8


def test_a_config_may_name_it(folder, call):
    (folder / "own.yaml").write_text("model_class: own_classes.Deeper\nmodel:\n  factor: 3.0\n")
    assert call("fit", "--config", "own.yaml", "--trust", "own_classes", *FEW)[0] == 0
    assert checkpoint()["hyper_parameters"]["factor"] == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model_class", "own_classes.Deeper"],
            "own_classes.Deeper: not imported; if you trust its code, add --trust",
        ),
        ([*DEEPER[2:], "--model_class", "own_classes.Stranger"], "expected a subclass of makemore_pl.MLP"),
        ([*DEEPER[2:], "--model_class", "own_classes.Missing"], "expected a subclass of makemore_pl.MLP"),
        (["--model.class_path", "own_classes.Deeper"], "--model.class_path: did you mean --model_class?"),
    ],
)
def test_what_is_no_subclass_or_not_trusted_is_one_line(arguments, message, folder, call):
    status, out, err = call("fit", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert ("own_classes" in sys.modules) == ("--trust" in arguments)


def test_a_checkpoint_of_a_subclass_needs_its_class(folder, call):
    assert call("fit", *DEEPER, *FEW)[0] == 0
    status, out, err = call("predict")
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_the_command_line_takes_a_subclass_from_python(folder):
    script = "from makemore_pl.commands.cli import CLI\nfrom own_classes import Deeper\nCLI(Deeper)\n"
    (folder / "train.py").write_text(script)
    for command in (["fit", *FEW], ["predict"], ["validate"]):
        done = subprocess.run([sys.executable, "train.py", *command], text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert "W3" in checkpoint()["state_dict"]


def test_the_folder_in_use_is_the_one_that_is_locked(folder, call):
    pytest.importorskip("fcntl")
    own = ["--trust", "own_classes", "--trainer.logger", "own_classes.Project", "--trainer.logger.version"]
    used = folder / "runs" / "project" / "a" / "checkpoints"
    used.mkdir(parents=True)
    (folder / "runs" / "checkpoints").mkdir()
    before = {name: lock(folder / "runs" / name) for name in ("checkpoints", "project/a/checkpoints")}
    assert None not in before.values()
    status, _, err = call("fit", *own, "a", *FEW)
    assert (status, err.count("another run writes its checkpoints there")) == (2, 1)
    status, _, err = call("fit", *own, "b", *FEW)
    assert status == 0, err
    assert (folder / "runs" / "project" / "b" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(("flags", "seed"), [([], 7), (["--model.seed", 3], 3)])
def test_one_seed_for_the_run_unless_one_is_named(flags, seed, folder, call):
    assert call("fit", "--seed_everything", 7, *flags, *FEW)[0] == 0
    assert checkpoint()["hyper_parameters"]["seed"] == seed
    assert checkpoint()["datamodule_hyper_parameters"]["order_seed"] == 7
    assert call("fit", *FEW)[0] == 0
    assert checkpoint(1)["hyper_parameters"]["seed"] == 2147483647


@pytest.mark.parametrize(
    ("callback", "status", "last_line"),
    [
        ("LearningRateFinder", 0, ""),
        ("BatchSizeFinder", 0, ""),
        ("EarlyStopping, init_args: {monitor: val/nonsense}", 2, "error: .*val/nonsense.* not available"),
        ("BackboneFinetuning", 2, "error: 'MLP' object has no attribute 'backbone'"),
    ],
)
def test_callbacks_of_lightning_work_or_say_in_one_line_what_they_miss(callback, status, last_line, folder, call):
    (folder / "own.yaml").write_text(f"trainer: {{callbacks: [{{class_path: {callback}}}]}}\n")
    found, _, err = call("fit", "--config", "own.yaml", "--data.batch_size", 16, *FEW)
    assert found == status, err
    assert "Traceback" not in err
    if last_line:
        assert re.match(last_line, err.rstrip("\n").split("\n")[-1])
    else:
        assert checkpoint()["global_step"] == 5


AVERAGING = """
trainer:
  callbacks:
    - class_path: StochasticWeightAveraging
      init_args: {swa_lrs: 0.001, swa_epoch_start: 3, annealing_epochs: 1}
data: {steps_per_epoch: 2}
"""


def test_weights_are_averaged_and_the_run_resumes(folder, call):
    """As stock Lightning does: with the schedule of the averaging, at its learning rate."""
    (folder / "own.yaml").write_text(AVERAGING)
    flags = ["--config", "own.yaml", *FEW[:2], *FEW[4:], "--trainer.max_epochs"]
    assert call("fit", *flags, 5)[0] == 0
    status, _, err = call("fit", *flags, 8, "--ckpt_path", "last")
    assert status == 0, err
    assert checkpoint()["global_step"] == 16
    assert checkpoint()["optimizer_states"][0]["param_groups"][0]["lr"] == 0.001
