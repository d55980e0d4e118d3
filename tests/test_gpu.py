"""What only a GPU can show: the same losses, weights and names as on a CPU, and nothing that waits for the device."""

import csv
import itertools
import re
from contextlib import contextmanager
from pathlib import Path

import notebook
import pytest
import torch
from conftest import ROOT

from makemore_pl import MLP, NamesDataModule, sampling
from makemore_pl.batches import Batches
from makemore_pl.commands import cli
from makemore_pl.gradient import sgd_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

ON = {accelerator: ["--trainer.accelerator", accelerator, "--trainer.devices", 1] for accelerator in ("cpu", "gpu")}
TWO = ["--trainer.accelerator", "gpu", "--trainer.devices", 2, "--trainer.strategy"]
QUICK = ["--config", ROOT / "configs" / "quick.yaml"]
DEFAULT_LOSS, QUICK_LOSS = 2.0886, 2.1668  # of a CPU, in the README


@pytest.fixture(autouse=True)
def a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fit(call):
    def run(*options):
        status, _, err = call("fit", *options)
        assert status == 0, err

    return run


@pytest.fixture(scope="module")
def loss_of(names):
    """The validation loss of weights by the notebook's formula: on the CPU, in 64 bits."""
    val = notebook.build_dataset(notebook.split(names)[1], notebook.stoi(names))
    return lambda weights: notebook.negative_log_likelihood(weights, *val).item()


def weights(folder=".", name="best"):
    path = f"{folder}/lightning_logs/version_0/checkpoints/{name}.ckpt"
    return torch.load(path, "cpu", weights_only=True)["state_dict"]


def assert_same_weights(ours, theirs, limit):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=limit)


def test_the_default_recipe_learns_as_on_a_cpu(fit, loss_of):
    fit(*ON["gpu"])
    assert loss_of(weights()) == pytest.approx(DEFAULT_LOSS, abs=0.01)


def test_the_default_recipe_takes_little_memory(fit):
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fit(*ON["gpu"])
    assert torch.cuda.max_memory_allocated() - before < 200e6


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_every_precision_learns_as_well(precision, fit, loss_of):
    if precision.startswith("bf16") and not torch.cuda.is_bf16_supported(False):
        pytest.skip("this GPU has no bfloat16")
    fit(*QUICK, *ON["gpu"], "--trainer.precision", precision)
    assert loss_of(weights()) == pytest.approx(QUICK_LOSS, abs=0.01)


STEP_BY_STEP = ["--trainer.max_steps", 20, "--trainer.log_every_n_steps", 1]
BY_HAND = ["--config", ROOT / "configs/lecture.yaml", "--trainer.max_steps", 200, "--trainer.log_every_n_steps", 10]


@pytest.mark.parametrize(
    ("options", "precision", "limit"),
    [(STEP_BY_STEP, "32-true", 1e-5), (STEP_BY_STEP, "64-true", 1e-10), (BY_HAND, "64-true", 1e-10)],
)
def test_the_first_losses_are_those_of_a_cpu(options, precision, limit, fit):
    losses = {}
    for accelerator in ON:
        # The curves of TensorBoard have 32 bits.
        log = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", accelerator]
        fit(*options, "--trainer.precision", precision, *log, *ON[accelerator])
        with Path(accelerator, "lightning_logs/version_0/metrics.csv").open(newline="") as file:
            losses[accelerator] = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses["cpu"]) == 20
    assert losses["gpu"] == pytest.approx(losses["cpu"], abs=limit)


@pytest.mark.parametrize("accelerator", ON)
def test_a_run_begun_on_a_gpu_goes_on_anywhere(accelerator, fit):
    # In 64 bits two devices differ by so little that anything more is a mistake.
    options = ["--data.batch_size", 32, "--model.schedule", "constant", "--trainer.precision", "64-true"]
    fit(*options, "--trainer.max_steps", 40, "--trainer.default_root_dir", "whole", *ON["gpu"])
    options += ["--trainer.default_root_dir", "parts"]
    fit(*options, "--trainer.max_steps", 20, *ON["gpu"])
    fit(*options, "--trainer.max_steps", 40, *ON[accelerator], "--ckpt_path", "last")
    assert_same_weights(weights("parts", "last"), weights("whole", "last"), 1e-6)


def test_names_are_those_of_a_cpu_and_alone_on_stdout(fit, call, monkeypatch):
    fit(*QUICK, *ON["gpu"])
    # A character that rounding changes gives other random numbers to the words after it, but only in its chunk.
    monkeypatch.setattr(sampling, "CHUNK", 25)
    drawn = {}
    for accelerator in ON:
        status, out, err = call("predict", "--sample.num_names", 5000, *ON[accelerator])
        assert status == 0, err
        assert re.fullmatch(r"([a-z]+\n){5000}", out)
        drawn[accelerator] = out.split()
    assert sum(map(str.__eq__, drawn["cpu"], drawn["gpu"])) >= 4950


def test_data_are_on_the_device_and_the_optimizer_is_fused(fit, monkeypatch):
    runs = []
    monkeypatch.setattr(cli.CLI, "after_fit", lambda self: runs.append(self))
    fit(*QUICK, *ON["gpu"])
    (run,) = runs
    assert {tensor.device.type for pair in run.datamodule.tensors.values() for tensor in pair} == {"cuda"}
    (optimizer,) = run.trainer.optimizers
    assert optimizer.param_groups[0]["fused"]


@contextmanager
def no_waiting():
    """Has torch raise an error wherever the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def loader(batch_size):
    X, Y = NamesDataModule().view("train", counted=batch_size is None)
    return Batches((X.cuda(), Y.cuda()), batch_size, seed=1)


@pytest.mark.parametrize("batch_size", [None, 32])
def test_a_step_does_not_wait_for_the_device(batch_size):
    model = MLP().cuda()
    optimizer = model.configure_optimizers()
    batches = itertools.chain.from_iterable(itertools.repeat(loader(batch_size)))

    def step():
        x, y = next(batches)
        loss = model.loss(model(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    step()  # the first brings the order of the epoch to the device
    with no_waiting():
        for _ in range(3):
            loss = step()
        with pytest.raises(RuntimeError, match="synchronizing"):
            loss.item()


def test_steps_by_hand_do_not_wait_for_the_device():
    model, batches = MLP().cuda(), loader(32)
    tensors = model.C, model.W1, model.b1, model.W2, model.b2
    sgd_steps(*tensors, *batches.block(0, 3), [0.1] * 3)
    with no_waiting():
        sgd_steps(*tensors, *batches.block(0, 3), [0.1] * 3)


@two_gpus
def test_two_gpus_train_as_one(command):
    for folder, devices in {"one": ON["gpu"], "two": [*TWO, "ddp"]}.items():
        options = ["--trainer.precision", "64-true", "--trainer.default_root_dir", folder]
        result = command("fit", *QUICK, *options, *devices, cwd=".")
        assert result.returncode == 0, result.stderr
    assert_same_weights(weights("two"), weights("one"), 1e-10)


@two_gpus
def test_two_gpus_with_a_share_of_the_weights_each_learn_as_well(command, loss_of):
    result = command("fit", *QUICK, *TWO, "fsdp", cwd=".")
    assert result.returncode == 0, result.stderr
    assert loss_of(weights()) == pytest.approx(QUICK_LOSS, abs=0.01)


@two_gpus
def test_two_gpus_draw_the_names_of_one(fit, command):
    fit(*QUICK, *ON["gpu"])
    names = 2 * sampling.CHUNK + 100
    one, two = (
        command("predict", "--sample.num_names", names, *devices, cwd=".") for devices in (ON["gpu"], [*TWO, "ddp"])
    )
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert one.stdout.count("\n") == names
    assert two.stdout == one.stdout
