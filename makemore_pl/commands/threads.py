"""How many threads torch computes with: one, unless a step is large enough to share.

Threads wait for each other at the end of every operation. On a quiet machine that costs little. Beside other work each
waits for the slowest, and a step of the default recipe takes ten times as long on two threads as on one (LOG.md).
"""

import math
import os
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

MOST = torch.get_num_threads()
"""The number that torch chooses by default."""

LARGE = 2**27
"""The fewest products of a forward pass, rows times parameters, that all threads share."""


def choose_threads(products: float) -> None:
    """Sets the number of threads for operations of that size, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(MOST if products >= LARGE else 1)


class Threads(Callback):
    """Chooses the number of threads before training, evaluation and sampling begin."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses for training; the validations inside of it keep the choice."""
        choose_threads(products(trainer.train_dataloader, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.training:
            choose_threads(products(trainer.val_dataloaders, pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        choose_threads(products(trainer.test_dataloaders, pl_module))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        choose_threads(products(trainer.predict_dataloaders, pl_module))


def products(loader: Any, model: LightningModule) -> float:
    """Multiplies the rows of a batch by the parameters; infinite where the loader has no such number."""
    rows = getattr(loader, "batch_size", None)
    return rows * sum(parameter.numel() for parameter in model.parameters()) if rows else math.inf
