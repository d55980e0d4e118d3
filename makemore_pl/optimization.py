"""The optimizer, the learning rate of each update, and blocks: K updates that the Trainer takes as one step.

Shapes: K updates, B batch, T block size (context length), V vocabulary size.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from makemore_pl.gradient import sgd_steps

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["constant", "linear", "halfway"]


def make_optimizer(model: Any) -> torch.optim.Optimizer:
    """Makes the optimizer of an MLP, without its schedule."""
    if model.hparams["optimizer"] == "sgd":
        return torch.optim.SGD(model.parameters(), model.hparams["lr"], fused=True)
    lr, weight_decay = model.hparams["lr"], model.hparams["weight_decay"]
    # Hardly any noise is left to average in batches of all windows: shorter memories than usual learn faster.
    return torch.optim.AdamW(model.parameters(), lr, betas=(0.85, 0.95), weight_decay=weight_decay, fused=True)


def lr_factor(name: ScheduleName, step: int, steps: float) -> float:
    """Computes the learning rate of an update, counted from 0, of a run of `steps` as a share of the highest."""
    if name == "constant" or math.isinf(steps) or not steps:
        return 1.0
    if name == "halfway":
        return 1.0 if step < steps / 2 else 0.1
    return max(0.0, min((step + 1) / (steps / 10), (1 - step / steps) / 0.9, 1.0))


class Schedule(LRScheduler):
    """Sets the learning rate, a function of the update and of the options of an MLP, also where a run resumes."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: Any) -> None:
        self.model, self.steps = model, total_updates(model.trainer)
        self.options = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
        super().__init__(optimizer)

    def rates(self, K: int) -> list[float]:
        """Computes the learning rates of the next K updates."""
        hparams, first = self.model.hparams, updates(self.model.trainer)
        return [hparams["lr"] * lr_factor(hparams["schedule"], first + k, self.steps) for k in range(K)]

    def get_lr(self) -> list[float | Tensor]:
        return [*self.rates(1)] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": updates(self.model.trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts back the options that were given, since the optimizer has loaded those of the checkpoint."""
        if state_dict["updates"] != updates(self.model.trainer):
            raise ValueError(
                "the checkpoint counts blocks of updates: resume with its steps_per_execution and steps_per_epoch, "
                "and end the run by --trainer.max_epochs"
            )
        for group, options in zip(self.optimizer.param_groups, self.options, strict=False):
            group |= options | {"lr": self.rates(1)[0]}


def num_windows(Y: Tensor) -> Tensor:
    """Counts the windows in Y, (B,) next characters or (B, V) counts: a scalar on its device."""
    return Y.new_full((), len(Y)) if Y.ndim == 1 else Y.sum()


def loss_and_mean(model: Any, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the loss of a batch to differentiate, and its mean over all devices; X (B, T), Y (B,) or (B, V)."""
    nll, windows = model.loss(model(X), Y, reduction="sum"), num_windows(Y)
    if model.trainer.world_size == 1:
        return nll / windows, nll.detach() / windows
    # Devices may hold unequal shares of the batch, and their gradients are averaged: divided by the windows of the
    # average device, they give the gradient of the mean over all windows. In one exchange, exact.
    together = torch.stack([nll.detach().double(), windows.double()])
    mean_nll, mean_windows = model.trainer.strategy.reduce(together, reduce_op="mean").to(nll.dtype)
    return nll / mean_windows, mean_nll / mean_windows


def updates(trainer: Trainer) -> int:
    """Counts the updates that a run has taken; Lightning's `global_step` counts its blocks."""
    return trainer.global_step * updates_in_a_step(trainer)


def total_updates(trainer: Trainer) -> float:
    """Counts the updates of a whole run; infinite if only time ends it."""
    trainer.fit_loop.setup_data()  # the loader knows how many a step has
    return trainer.estimated_stepping_batches * updates_in_a_step(trainer)


def updates_in_a_step(trainer: Trainer) -> int:
    """Returns K, the updates of a block, or 1."""
    return getattr(trainer.train_dataloader, "steps_per_execution", 1)


def takes_blocks(model: Any, base: type) -> bool:
    """Tells whether `sgd_steps` computes what autograd and the Trainer would; `base` is MLP itself."""
    trainer, methods = model.trainer, ("forward", "hidden", "loss", "training_step", "configure_optimizers")
    return (
        all(getattr(type(model), name) is getattr(base, name) for name in methods)
        and all(parameter.requires_grad for parameter in model.parameters())
        and model.hparams["optimizer"] == "sgd"
        and trainer.world_size == trainer.accumulate_grad_batches == 1
        and trainer.precision in ("32-true", "64-true")
        and not trainer.gradient_clip_val
        and trainer.max_steps == -1  # the Trainer would count blocks
    )


def train_on_block(model: Any, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Takes K updates by hand, with X (K, B, T) and Y (K, B), and returns two scalars.

    The first has no gradient for any parameter: the step that Lightning takes with it changes nothing. The second is
    the mean loss of the batches.
    """
    schedule = model.lr_schedulers()
    # One of Lightning's own finders or averagers may have replaced the schedule: then one rate holds for the block.
    lrs = schedule.rates(len(X)) if isinstance(schedule, Schedule) else schedule.get_last_lr() * len(X)
    mean = torch.tensor(sgd_steps(model.C, model.W1, model.b1, model.W2, model.b2, X, Y, lrs))
    model.log("lr-SGD", lrs[-1])  # as LearningRateMonitor calls it
    model.log("step", float(updates(model.trainer) + len(X)))  # the x axis of logs, which would count blocks
    return mean.clone().requires_grad_(), mean


class EndOfRun(Callback):
    """Has the final weights validated and saved, also where the last step lies inside an epoch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True


class KeepMetrics(Callback):
    """Saves the metrics, and logs them again where a run resumes at an epoch's end: EarlyStopping looks for them."""

    kept: Mapping[str, float] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.kept = checkpoint.get("metrics", {})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in self.kept.keys() - trainer.callback_metrics.keys():
            pl_module.log(name, self.kept[name], logger=False)
