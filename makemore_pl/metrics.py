"""Loss and accuracy over a whole split, however it is cut into batches or shared among devices; kept on resume.

Shapes: B batch, V vocabulary size.
"""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric


def count(Y: Tensor) -> Tensor:
    """Counts the windows in Y, (B,) next characters or (B, V) counts: a scalar on its device."""
    return Y.new_full((), len(Y)) if Y.ndim == 1 else Y.sum()


def precise(device: torch.device) -> torch.dtype:
    """Returns the type of sums, whatever the precision of the model: 64 bits, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


class Evaluation(Metric):
    """Sums over the windows of a split."""

    full_state_update = False
    nll: Tensor
    hits: Tensor
    windows: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nll", "hits", "windows"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def reset(self) -> None:
        self.set_dtype(precise(self.device))
        super().reset()

    def update(self, logits: Tensor, Y: Tensor, nll: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (B, V).
            Y: (B,) int64 next characters, or (B, V) counts.
            nll: the sum of their negative log likelihoods, a scalar.
        """
        guess = logits.argmax(dim=1, keepdim=True)
        self.nll += nll
        self.hits += (guess[:, 0] == Y).sum() if Y.ndim == 1 else Y.gather(1, guess).sum()
        self.windows += count(Y)

    def compute(self) -> dict[str, Tensor]:
        """Divides the sums by the number of windows."""
        loss = self.nll / self.windows
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "bits_per_character": loss / math.log(2),
            "accuracy": self.hits / self.windows,
        }


class KeepMetrics(Callback):
    """Saves the metrics of the last validation, and logs them again at the end of the epoch that a run resumes in.

    Lightning resumes from a checkpoint that was saved after a validation with the end of its epoch. There EarlyStopping
    and similar callbacks look for the metric that they monitor.
    """

    def __init__(self) -> None:
        self.kept: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics.items()
        self.kept = {name: float(value) for name, value in metrics if name.startswith("val/")}

    def state_dict(self) -> dict[str, Any]:
        return self.kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = dict(state_dict)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in self.kept.keys() - trainer.callback_metrics.keys():
            value = torch.tensor(self.kept[name], dtype=precise(pl_module.device), device=pl_module.device)
            pl_module.log(name, value, logger=False)
