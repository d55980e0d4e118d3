"""`lr_find`, the lecture's search for a learning rate: one step at each of many, and the valley of their losses.

The valley shows which rates are good at every step. A run with warm-up and decay is at its peak for a moment only, so
its peak may be higher (`share_of_peak`).
"""

import math
import sys
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from makemore_pl.commands.fit import describe, load_teacher
from makemore_pl.commands.messages import say
from makemore_pl.commands.threads import choose_threads, products
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.optimization import make_optimizer
from makemore_pl.pictures.figures import draw_learning_rates
from makemore_pl.terminal import command_line

LOWEST, HIGHEST = 0.001, 1.0
"""The lecture's learning rates, from 10^-3 to 10^0, equally far apart in the exponent."""

POINTS = 100
"""The number of points that the raw losses are averaged to, which removes most of the noise of minibatches."""

LINEAR_SHARE = 0.5
"""The mean learning rate over a run of the linear schedule, as a share of its peak."""

Found = tuple[float, float, float]
"""The suggested learning rate, and the lowest and highest that are good."""


def lr_find(trainer: Trainer, model: MLP, datamodule: NamesDataModule, num_steps: int | None = None) -> None:
    """Finds a learning rate as makemore part 2 does, and prints the command that uses it.

    With the linear schedule it is the peak: twice the rate that is good at every step.

    Args:
        trainer: see `find_lr`.
        model: not yet trained.
        datamodule: its data.
        num_steps: how many learning rates to try; default 1,000, or 200 where each step takes all windows.
    """
    describe(datamodule, model)
    load_teacher(datamodule)
    found, share = find_lr(trainer, model, datamodule, num_steps), share_of_peak(trainer, model)
    lr, low, high = (f"{lr:.2g}" for lr in found)
    picture = Path(trainer.log_dir or trainer.default_root_dir, "lr_find.png")
    say(f"learning rate {lr}, good from {low} to {high}; the curve: {command_line(picture)}")
    if share < 1:
        say(f"this is the peak of the linear schedule: {1 / share:g} x {found[0] * share:.2g}, the rate for all steps")
    words = iter(sys.argv[sys.argv.index("lr_find") + 1 :] if "lr_find" in sys.argv else [])
    kept = []
    for word in words:
        if word.partition("=")[0] not in ("--num_steps", "--model.lr"):
            kept.append(word)
        elif "=" not in word:
            next(words, None)  # its value
    print(command_line("python", "-m", "makemore_pl", "fit", *kept, "--model.lr", lr), flush=True)


def find_lr(trainer: Trainer, model: MLP, data: NamesDataModule, num_steps: int | None = None) -> Found:
    """Takes one step at each of many learning rates, from 0.001 to 1, as makemore part 2 does.

    The curve goes to TensorBoard and to lr_find.png in the folder of the run. The model keeps the weights of the last
    step.

    Args:
        trainer: gives device, precision, and the folder of the curve; it trains nothing.
        model: not yet trained.
        data: its data.
        num_steps: how many learning rates to try; if omitted 1,000, or 200 where each step takes all windows.

    Returns:
        The suggestion for the `lr` of the model, and the lowest and highest that are good.

    Raises:
        ValueError: if there are fewer than two steps or more than a million, several devices, or the loss never falls.
    """
    if num_steps is None:
        num_steps = 200 if data.takes_all else 1000
    if not 2 <= num_steps <= 10**6:
        raise ValueError(f"num_steps is {num_steps}: expected 2 to 1,000,000")
    if trainer.world_size > 1:
        raise ValueError(
            "lr_find runs on one device: omit --trainer.devices, --trainer.num_nodes and --trainer.strategy"
        )
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)  # refuses one that cannot be written before the search
    lrs = [LOWEST * (HIGHEST / LOWEST) ** (step / (num_steps - 1)) for step in range(num_steps)]
    losses = take_steps(trainer, model, data, lrs)
    found, share = valley(lrs, losses), share_of_peak(trainer, model)
    figure = draw_learning_rates(lrs, losses, *found, share)
    figure.savefig(folder / "lr_find.png")
    if isinstance(trainer.logger, TensorBoardLogger):
        trainer.logger.experiment.add_figure("lr_find", figure)
        trainer.logger.experiment.close()
    lr, low, high = (rate / share for rate in found)
    return lr, low, high


def share_of_peak(trainer: Trainer, model: MLP) -> float:
    """Computes which share of the peak of the model's schedule is to be good at every step.

    The linear schedule has its peak for a moment only, and the mean over its run is what compares with a constant rate
    (LOG.md). The others keep their highest rate for half of the run or all of it, so it must be good at every step; so
    does the linear one where only time ends the run.
    """
    ends = trainer.max_steps != -1 or trainer.max_epochs != -1
    return LINEAR_SHARE if model.hparams["schedule"] == "linear" and ends else 1.0


def take_steps(trainer: Trainer, model: MLP, data: NamesDataModule, lrs: Sequence[float]) -> list[float]:
    """Takes a step at each learning rate, and returns the loss before each."""
    data.trainer = trainer
    data.setup("fit")
    trainer.precision_plugin.convert_module(model.to(trainer.strategy.root_device))
    batches, optimizer, losses = data.train_dataloader(), make_optimizer(model), []
    choose_threads(products(batches, model))
    for step, lr in enumerate(lrs):
        X, Y = trainer.precision_plugin.convert_input(batches.batch(step))
        with trainer.precision_plugin.forward_context():
            loss = model.loss(model(X), Y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def valley(lrs: Sequence[float], losses: Sequence[float]) -> Found:
    """Finds the learning rates where the loss has fallen far and still falls.

    The valley is the longest fall of the loss over the logarithm of the learning rate: the longest sequence of points
    each below the one before, others between them ignored. Its last third is good, the middle of that the suggestion.

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
        raise ValueError("no step had a finite loss; try a smaller model, or --trainer.precision 32")
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
