"""`lr_find`, the lecture's search for a learning rate: one step at each of many, and the valley of their losses."""

import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.optimization import make_optimizer
from makemore_pl.report import command_line, describe, say, shown


def lr_find(trainer: Trainer, model: MLP, datamodule: NamesDataModule, num_steps: int | None = None) -> None:
    """Takes a step at each of many learning rates from 0.001 to 1 (makemore part 2), and prints the command to train.

    The curve goes to TensorBoard and to lr_find.png in the folder of the run. The linear schedule is at its peak for a
    moment only: its mean over the run is what compares with a rate for all steps, so the peak is twice that.
    """
    num_steps = num_steps or (200 if datamodule.takes_all else 1000)
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}: expected 2 or more")
    describe(datamodule, model)
    lrs = [10 ** (3 * step / (num_steps - 1) - 3) for step in range(num_steps)]
    losses = take_steps(trainer, model, datamodule, lrs)
    peaks = [2 * lr for lr in lrs] if model.hparams["schedule"] == "linear" else lrs
    found = valley(peaks, losses)
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    from makemore_pl.pictures.figures import draw_learning_rates  # matplotlib takes half a second to import

    figure = draw_learning_rates(peaks, losses, *found)
    figure.savefig(folder / "lr_find.png")
    if isinstance(trainer.logger, TensorBoardLogger):
        trainer.logger.experiment.add_figure("lr_find", figure)
    lr, low, high = (f"{rate:.2g}" for rate in found)
    say(f"learning rate {lr}, good from {low} to {high}; the curve: {shown(folder / 'lr_find.png')}")
    flags = shlex.join(sys.argv[sys.argv.index("lr_find") + 1 :]) if "lr_find" in sys.argv else ""
    flags = re.sub(r"--(num_steps|model\.lr)[ =]\S+ ?", "", f"{flags} ")
    print(f"{command_line(type(model), 'fit')} {flags}--model.lr {lr}", flush=True)


def take_steps(trainer: Trainer, model: MLP, data: NamesDataModule, lrs: Sequence[float]) -> list[float]:
    """Takes a step at each learning rate, and returns the loss before each."""
    data.setup("fit")
    device = trainer.strategy.root_device
    trainer.precision_plugin.convert_module(model.to(device))
    batches, optimizer, losses = data.train_dataloader(), make_optimizer(model), []
    for step, lr in enumerate(lrs):
        X, Y = trainer.precision_plugin.convert_input([part.to(device) for part in batches.batch(step)])
        with trainer.precision_plugin.forward_context():
            loss = model.loss(model(X), Y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def valley(lrs: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float]:
    """Finds the learning rates where the loss has fallen far and still falls.

    The valley is the longest fall of the loss over the logarithm of the learning rate: the longest sequence of points
    each below the one before, others between them ignored. Its last third is good, the middle of that the suggestion.

    Returns:
        The suggestion, and the lowest and highest that are good.
    """
    end = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    size = max(1, len(losses) // 100)  # the mean of a few steps has less noise
    places = [slice(start, start + size) for start in range(0, end - size + 1, size)]
    points = [(fmean(map(math.log, lrs[place])), fmean(losses[place])) for place in places]
    fall = longest_fall([loss for _, loss in points])
    if len(fall) < 2:
        raise ValueError("the loss did not fall at any learning rate from 0.001 to 1; try a smaller model")
    first, last = points[fall[0]][0], points[fall[-1]][0]
    low, middle, high = (math.exp(first + (last - first) * share) for share in (2 / 3, 5 / 6, 1))
    return middle, low, high


def longest_fall(values: Sequence[float]) -> list[int]:
    """Returns the places of the longest strictly falling subsequence."""
    falls: list[list[int]] = []  # the longest one that ends at each place
    for i, value in enumerate(values):
        before = [fall for fall in falls if values[fall[-1]] > value]
        falls.append([*max(reversed(before), key=len, default=[]), i])
    return max(reversed(falls), key=len, default=[])
