import re
from pathlib import Path

import notebook
import pytest
import torch
from conftest import ROOT

from makemore_pl import MLP
from makemore_pl.commands.cli import refuse_precision

QUICK = ["fit", "--config", ROOT / "configs" / "quick.yaml", "--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def loss_of(names):
    """The validation loss of a checkpoint by the notebook's formula, in 64 bits."""
    val = notebook.build_dataset(notebook.split(names)[1], notebook.stoi(names))

    def judge():
        weights = torch.load("lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)["state_dict"]
        return notebook.negative_log_likelihood(weights, *val).item()

    return judge


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_every_precision_learns_as_well(precision, loss_of, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(*QUICK, "--trainer.precision", precision)
    assert status == 0, err
    assert loss_of() == pytest.approx(2.1668, abs=0.01)  # in the README, of 32-true
    (said,) = re.findall(r"val/loss ([\d.]+)", err)
    assert float(said) == pytest.approx(loss_of(), abs=0.005 if precision.startswith("bf16") else 1e-4)
    status, _, err = call("validate", "--trainer.precision", precision)
    assert status == 0, err


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_computed_in_32_bits(dtype, counted):
    logits = torch.randn(3000, 27, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    y = torch.arange(3000) % 27
    Y = torch.nn.functional.one_hot(y, 27) if counted else y
    prob = logits.detach().double().exp()
    expected = -(prob / prob.sum(1, keepdim=True))[torch.arange(3000), y].log().sum()
    with torch.autocast("cpu", torch.bfloat16):
        loss = MLP.loss(logits, Y, "sum")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_a_device_cannot_do_is_one_line(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for precision in ("16-mixed", "16"):
        status, out, err = call(*QUICK, "--trainer.precision", precision)
        assert (status, out) == (2, "")
        assert err == "error: --trainer.precision 16-mixed needs a GPU; bf16-mixed is the equivalent on a CPU\n"
    assert not list(Path().iterdir())


def test_other_devices_cannot_do_everything_either(monkeypatch):
    with pytest.raises(ValueError, match="64 bits"):
        refuse_precision("64-true", torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    for precision in ("bf16", "bf16-mixed", "bf16-true"):
        with pytest.raises(ValueError, match="no bfloat16"):
            refuse_precision(precision, torch.device("cuda"))
    for precision in ("16-mixed", "32-true", 32, None, "64-true"):
        refuse_precision(precision, torch.device("cuda"))


def test_flags_reach_torch(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--data.num_words", 50, "--trainer.max_steps", 2, "--trainer.logger", "false"]
    try:
        assert call("fit", *few, "--matmul_precision", "high")[0] == 0
        assert torch.get_float32_matmul_precision() == "high"
        assert call("fit", *few)[0] == 0
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
