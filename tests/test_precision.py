"""Whatever the precision of the Trainer, a network learns as well, and its losses are computed in 32 bits at least."""

import notebook
import pytest
import torch
from lightning.pytorch import Trainer

from makemore_pl import MLP, NamesDataModule


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_every_precision_learns_as_well(precision, names, tmp_path):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=66, precision=precision, accelerator="cpu", logger=False, **quiet)
    model = MLP(lr=0.06, weight_decay=0.0)  # configs/quick.yaml
    trainer.fit(model, NamesDataModule())
    X, Y = notebook.build_dataset(notebook.split(names)[1], notebook.stoi(names))
    loss = notebook.negative_log_likelihood(model.state_dict(), X, Y).item()
    assert loss == pytest.approx(2.1668, abs=0.01)  # in README.md, of 32-true
    said = trainer.callback_metrics["val/loss"].item()
    assert said == pytest.approx(loss, abs=0.005 if precision.startswith("bf16") else 1e-4)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    (metrics,) = trainer.validate(MLP(), NamesDataModule(), tmp_path / "saved.ckpt", verbose=False, weights_only=True)
    assert metrics["val/loss"] == said


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
