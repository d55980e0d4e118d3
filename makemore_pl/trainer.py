"""Lightning's Trainer with the two commands that it lacks: `lr_find` and `export`."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger

from makemore_pl.datamodule import NamesDataModule, require_same_split
from makemore_pl.ensemble import average as combine
from makemore_pl.export import export
from makemore_pl.figures import draw_learning_rates
from makemore_pl.model import MLP

LOWEST, HIGHEST = 0.001, 1.0
"""The lecture's learning rates, from 10^-3 to 10^0, equally far apart in the exponent."""

POINTS = 100
"""The raw losses are averaged to so many points, which takes most of the noise of minibatches."""

Found = tuple[float, float, float]
"""A learning rate to take, and the lowest and highest that look good."""


class Trainer(pl.Trainer):
    """Lightning's Trainer with the two commands that it lacks."""

    def lr_find(self, model: MLP, datamodule: NamesDataModule, num_steps: int | None = None) -> Found:
        """Looks for a learning rate as makemore part 2 does: one step at each of many, from 0.001 to 1.

        The curve goes to TensorBoard and to lr_find.png in the folder of the run. The model is left as the last step
        left it.

        Args:
            model: as it is before training.
            datamodule: its data.
            num_steps: how many learning rates to try; if left out 1,000, or 200 where each step takes all windows.

        Returns:
            The suggestion, and the lowest and highest that look good.

        Raises:
            ValueError: if there are fewer than two steps or more than a million, or the loss never falls.
        """
        if num_steps is None:
            num_steps = 200 if datamodule.takes_all else 1000
        if not 2 <= num_steps <= 10**6:
            raise ValueError(f"num_steps is {num_steps}: expected 2 to 1,000,000")
        lrs = [LOWEST * (HIGHEST / LOWEST) ** (step / (num_steps - 1)) for step in range(num_steps)]
        model.lr_at = lambda step: lrs[min(step, num_steps - 1)]  # type: ignore[method-assign]
        if self.is_global_zero:
            Path(self.default_root_dir).mkdir(parents=True, exist_ok=True)  # before anything can be lost
        losses = _Losses()
        self.callbacks.append(losses)  # type: ignore[attr-defined]
        self.fit_loop.epoch_loop.max_steps, self.fit_loop.max_epochs = num_steps, -1
        self.limit_val_batches = 0
        self.fit(model, datamodule)
        lrs = lrs[: len(losses.values)]  # time may have run out
        found = valley(lrs, losses.values)
        if self.is_global_zero:
            figure = draw_learning_rates(lrs, losses.values, *found)
            figure.savefig(Path(self.log_dir or self.default_root_dir, "lr_find.png"))
            if isinstance(self.logger, TensorBoardLogger):
                self.logger.experiment.add_figure("lr_find", figure)
                self.logger.experiment.close()
        return found

    def export(
        self, model: MLP, datamodule: NamesDataModule, output: str, average: Sequence[str] | None = None
    ) -> None:
        """Writes the model in another form.

        Args:
            model: with its weights.
            datamodule: what it was trained on.
            output: a file whose ending says the form: .html, a page to play with; .onnx; .safetensors; .ckpt.
            average: further checkpoints, of networks trained on the same words; what is written is one network that is
                the average of all.

        Raises:
            ValueError: if a network does not fit the others, or the file cannot be written.
        """
        models = [model]
        for path in average or []:
            models.append(MLP.load_from_checkpoint(path, "cpu"))
            require_same_split(path, datamodule.hparams)
        if self.is_global_zero:
            export(combine(models) if average else model, output, datamodule.hparams)


class _Losses(Callback):
    """Keeps the loss of every step: that of its last batch, where gradients are accumulated."""

    def __init__(self) -> None:
        self.losses: dict[int, torch.Tensor] = {}  # by step, on their device

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keeps one; it is that of all devices together."""
        self.losses[trainer.global_step] = trainer.callback_metrics["train/loss"]

    @property
    def values(self) -> list[float]:
        """The losses after 1, 2, ... steps."""
        return [float(loss) for step, loss in self.losses.items() if step > 0]


def valley(lrs: Sequence[float], losses: Sequence[float]) -> Found:
    """Finds the learning rates where the loss has fallen far and still falls.

    The valley is the longest fall of the loss over the logarithm of the learning rate: the longest sequence of points
    each below the one before, others between them left out. Its last third is good, the middle of that the suggestion.

    Args:
        lrs: learning rates, equally far apart in their logarithm.
        losses: the loss at each; from the first that is no finite number on, they do not count.

    Returns:
        The suggestion, and the lowest and highest that are good.

    Raises:
        ValueError: if the loss never falls.
    """
    end = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    size = max(1, len(losses) // POINTS)
    points = [
        (_mean([math.log(lr) for lr in lrs[start : start + size]]), _mean(losses[start : start + size]))
        for start in range(0, end - size + 1, size)
    ]
    if not points:
        raise ValueError("no step was taken that has a finite loss; let it train, or take a smaller model")
    fall = longest_fall([loss for _, loss in points])
    if len(fall) < 2:
        raise ValueError("the loss did not fall at any learning rate from 0.001 to 1")
    first, last = points[fall[0]][0], points[fall[-1]][0]
    low, middle, high = (math.exp(first + (last - first) * share) for share in (2 / 3, 5 / 6, 1))
    return middle, low, high


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def longest_fall(values: Sequence[float]) -> list[int]:
    """Returns the places of the longest strictly falling subsequence."""
    lowest: list[float] = []  # for each length, minus the highest value that such a fall may end with
    ends: list[int] = []  # where that value is
    before: list[int] = []  # of each place, the one before it in its fall
    for i, value in enumerate(values):
        length = bisect_left(lowest, -value)
        before.append(ends[length - 1] if length else -1)
        lowest[length : length + 1], ends[length : length + 1] = [-value], [i]
    fall = ends[-1:]
    while fall and before[fall[-1]] >= 0:
        fall.append(before[fall[-1]])
    return fall[::-1]
