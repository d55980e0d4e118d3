"""Optimizers and learning rates over a run, and blocks: several updates in one batch of the Trainer's.

Shapes: K updates, B batch, T block size (context length), V vocabulary size.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from makemore_pl.gradient import sgd_steps
from makemore_pl.metrics import count
from makemore_pl.options import require_choice

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["constant", "linear", "halfway"]


def require_optimizer(optimizer: str, schedule: str, lr: float, weight_decay: float, momentum: float) -> None:
    """Checks the options of an MLP that concern its optimizer.

    Raises:
        ValueError: if one is out of its range.
    """
    require_choice("optimizer", optimizer, OptimizerName)
    require_choice("schedule", schedule, ScheduleName)
    for name, value in [("lr", lr), ("weight_decay", weight_decay)]:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value:g}: expected 0 or more")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum:g}: expected 0 or more, less than 1")


def make_optimizer(model: Any) -> torch.optim.Optimizer:
    """Makes the optimizer of an MLP, without its schedule."""
    lr, momentum, weight_decay = (model.hparams[name] for name in ("lr", "momentum", "weight_decay"))
    if model.hparams["optimizer"] == "sgd":
        return torch.optim.SGD(model.parameters(), lr, fused=True)
    betas = momentum, 1 - (1 - momentum) / 3
    return torch.optim.AdamW(model.parameters(), lr, betas, weight_decay=weight_decay, fused=True)


class Schedule(LRScheduler):
    """Sets the learning rate of every update.

    A checkpoint holds the number of updates alone: a resumed run has the rate and the options that it was given, not
    those that the optimizer brings back.

    Args:
        optimizer: with its options.
        name: `constant`, `linear` or `halfway`, as in `MLP`.
        steps: updates of the whole run; infinite if only time ends it.
        highest: gives the learning rate at its highest, which one of Lightning's finders may change.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, name: ScheduleName, steps: float, highest: Callable[[], float]
    ) -> None:
        self.name, self.steps, self.highest = name, steps, highest
        self.options = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Computes the learning rate of the update that comes next, for each group of parameters."""
        return [self.highest() * lr_factor(self.name, self.last_epoch, self.steps)] * len(self.options)

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of updates."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after a number of updates. The optimizer must be loaded before."""
        self.last_epoch = state_dict["last_epoch"]
        for group, options, lr in zip(self.optimizer.param_groups, self.options, self.get_lr(), strict=True):
            group |= options | {"lr": lr}


def lr_factor(name: ScheduleName, step: int, steps: float) -> float:
    """Computes the learning rate of an update as a share of the highest.

    Args:
        name: of the schedule.
        step: the update, counted from 0.
        steps: updates of the whole run.
    """
    if name == "constant" or math.isinf(steps):
        return 1.0
    if name == "halfway":
        return 1.0 if step < steps / 2 else 0.1
    return max(0.0, min((step + 1) / (steps / 10), (1 - step / steps) / 0.9, 1.0))


def make_schedule(optimizer: torch.optim.Optimizer, model: Any) -> Schedule:
    """Makes the learning-rate schedule of an MLP that is attached to its Trainer."""
    return Schedule(optimizer, model.hparams["schedule"], number_of_steps(model.trainer), lambda: model.hparams["lr"])


def number_of_steps(trainer: Trainer) -> float:
    """Computes the updates of the whole run; infinite if only time ends it."""
    steps = trainer.estimated_stepping_batches  # this loads the loader
    if trainer.lightning_module.automatic_optimization or trainer.max_epochs in (None, -1):
        return steps
    loader: Any = trainer.train_dataloader  # of which Lightning counts the blocks
    per_epoch = min(loader.steps_per_epoch, trainer.num_training_batches * loader.steps_per_execution)
    limit = trainer.max_steps if trainer.max_steps != -1 else math.inf
    return min(limit, per_epoch * trainer.max_epochs)


def takes_blocks(trainer: Trainer) -> bool:
    """Decides whether the batches of a run are blocks of updates, under manual optimization.

    Raises:
        ValueError: if they are, and the Trainer is to accumulate or clip gradients.
    """
    data = getattr(trainer, "datamodule", None)
    updates = 1 if data is None else data.hparams.get("steps_per_execution", 1)
    if updates > 1 and (trainer.accumulate_grad_batches > 1 or trainer.gradient_clip_val):
        raise ValueError(f"steps_per_execution is {updates}: expected 1 where gradients are accumulated or clipped")
    return updates > 1


class EndOfRun(Callback):
    """Ends a run at its last update, wherever that lies in an epoch, and not before."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continues after one of Lightning's finders, which trains to a limit of its own and stops the Trainer."""
        trainer.should_stop = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Has the final weights validated and saved, also where the last step lies inside an epoch."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True


def loss_and_mean(model: Any, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the loss to differentiate, and the mean loss over all devices.

    Args:
        model: an MLP, attached to its Trainer.
        X: (B, T) int64 contexts.
        Y: (B,) int64 next characters, or (B, V) counts.

    Returns:
        Two scalars.
    """
    nll, windows = model.loss(model(X), Y, reduction="sum"), count(Y)
    if model.trainer.world_size == 1:
        return nll / windows, nll.detach() / windows
    # Devices may hold unequal shares of the batch, and their gradients are averaged: divided by the windows of the
    # average device, they give the gradient of the mean over all windows. In one exchange, exact.
    together = torch.stack([nll.detach().double(), windows.double()])
    mean_nll, mean_windows = model.trainer.strategy.reduce(together, reduce_op="mean").to(nll.dtype)
    return nll / mean_windows, mean_nll / mean_windows


def take_steps(model: Any, X: Any, Y: Any) -> tuple[Tensor, float]:
    """Takes an optimizer step, and a step of each scheduler, for each of K batches.

    Args:
        model: an MLP under manual optimization, attached to its Trainer.
        X: (K, B, T) int64 contexts, or a list of K.
        Y: (K, B) int64 next characters or (K, B, V) counts, or a list of K.

    Returns:
        The mean loss of the last batch and the learning rate, both before its step.

    Raises:
        ValueError: if a scheduler waits for a metric.
    """
    optimizer, schedulers = model.optimizers(), as_list(model.lr_schedulers())
    if any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers):
        raise ValueError(
            "ReduceLROnPlateau waits for a metric, and blocks step their schedulers after every update: "
            "set steps_per_execution to 1"
        )
    by_hand, lrs, mean = trains_by_hand(model, optimizer.optimizer, Y[0]), [], torch.zeros(())
    for x, y in zip(X, Y, strict=True):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        if not by_hand:
            loss, mean = loss_and_mean(model, x, y)
            model.manual_backward(loss)
        optimizer.step()  # by hand there is no gradient: the step is only counted
        for scheduler in schedulers:
            scheduler.step()
    if by_hand:
        tensors = model.C, model.W1, model.b1, model.W2, model.b2
        sgd_steps(*tensors, X[:-1], Y[:-1], lrs[:-1])
        with torch.no_grad():
            mean = model.loss(model(X[-1]), Y[-1])
        sgd_steps(*tensors, X[-1:], Y[-1:], lrs[-1:])
    return mean, lrs[-1]


def trains_by_hand(model: Any, optimizer: torch.optim.Optimizer, y: Tensor) -> bool:
    """Tells whether `sgd_steps` computes what autograd would: our network, examples, plain SGD, one device."""
    plain = {"momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False}
    return (
        model.is_plain
        and type(optimizer) is torch.optim.SGD
        and len(optimizer.param_groups) == 1
        and plain.items() <= optimizer.param_groups[0].items()
        and all(parameter.requires_grad for parameter in model.parameters())
        and y.ndim == 1
        and model.trainer.world_size == 1
        and model.trainer.precision in ("32-true", "64-true")
    )


def as_list(value: Any) -> list[Any]:
    """Makes a list of one thing, of several, or of None."""
    return value if isinstance(value, list) else [] if value is None else [value]
