"""What only a GPU can show: the same losses, weights and names as on a CPU, and nothing that waits for the device."""

import itertools
import shlex

import notebook
import pytest
import torch

from makemore_pl import MLP, NamesDataModule, sampling
from makemore_pl.batches import Batches
from makemore_pl.checkpoints import newest, read

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
ON = {device: f"--trainer.accelerator {device} --trainer.devices 1 --pictures false" for device in ("cpu", "gpu")}
BY_HAND = "--config lecture --data.steps_per_epoch 100 --data.steps_per_execution 5 --trainer.max_epochs 1"


@pytest.fixture
def fit(call, folder):
    def run(line):
        status, _, err = call("fit", *shlex.split(line))
        assert status == 0, err

    return run


def weights(name="best"):
    return read(newest(name))["state_dict"]


def assert_same(ours, theirs, limit):
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=limit)


@pytest.mark.parametrize(
    ("line", "precision", "limit"),
    [
        # In 64 bits two devices differ by so little that anything more is a mistake.
        ("--trainer.max_steps 20", "64-true", 1e-8),
        (BY_HAND, "64-true", 1e-8),
        *(("--config quick", precision, 0.01) for precision in ("32-true", "bf16-mixed", "bf16-true", "16-mixed")),
    ],
)
def test_a_gpu_learns_as_a_cpu_does(line, precision, limit, fit, names):
    if precision.startswith("bf16") and not torch.cuda.is_bf16_supported(False):
        pytest.skip("this GPU has no bfloat16")
    val, losses = notebook.build_dataset(notebook.split(names)[1], notebook.stoi(names)), []
    for on in (f"{ON['cpu']} --trainer.precision 64-true", f"{ON['gpu']} --trainer.precision {precision}"):
        fit(f"{line} {on}")
        losses.append(notebook.negative_log_likelihood(weights("last"), *val).item())
    assert losses[0] == pytest.approx(losses[1], abs=limit)


@pytest.mark.parametrize("device", ON)
def test_a_run_begun_on_a_gpu_resumes_anywhere(device, fit):
    options = "--data.batch_size 32 --data.steps_per_epoch 20 --model.schedule constant --trainer.precision 64-true"
    fit(f"{options} --trainer.max_steps 40 {ON['gpu']}")
    whole = weights("last")
    fit(f"{options} --trainer.max_steps 20 {ON['gpu']}")
    fit(f"--ckpt_path last --trainer.max_steps 40 {ON[device]}")
    assert_same(weights("last"), whole, 1e-6)


def test_names_are_those_of_a_cpu(fit, call, monkeypatch):
    fit(f"--config quick {ON['gpu']}")
    # A character that rounding changes gives other random numbers to the words after it, but only in its chunk.
    monkeypatch.setattr(sampling, "CHUNK", 25)
    predict = "predict --sample.num_names 5000 --trainer.devices 1 --trainer.accelerator"
    drawn = [call(*predict.split(), device)[1].split("\n") for device in ON]
    assert len(drawn[0]) == 5001
    assert sum(map(str.__eq__, *drawn)) >= 4950


@pytest.mark.parametrize("batch_size", [None, 32])
def test_an_update_does_not_wait_for_the_device(batch_size):
    model, data = MLP().cuda(), NamesDataModule(batch_size=batch_size)
    data.setup("fit")
    loader = Batches(tuple(tensor.cuda() for tensor in data.tensors["train"]), batch_size, seed=1)
    optimizer, batches = torch.optim.AdamW(model.parameters(), fused=True), itertools.cycle(loader)
    try:
        for update in range(4):
            X, Y = next(batches)
            loss = model.loss(model(X), Y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            if update == 0:  # the first one brings the order of the pass to the device; now waiting is an error
                torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchronizing"):
            loss.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
