"""The steps that nobody watches at the speed of a plain loop, under the Trainer."""

import copy

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]

from makemore_pl.board import Board
from makemore_pl.callbacks import StopNotFinite, ValidateLastStep
from makemore_pl.datamodule import Batches
from makemore_pl.model import MLP
from makemore_pl.watchdog import Watchdog

ROWS_AT_ONCE = 2**18
"""Rows that are taken from the loader at a time."""

BATCH_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
EPOCH_HOOKS = ("on_train_epoch_start", "on_train_epoch_end")

MAY_MISS_STEPS = (
    Board,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    StopNotFinite,
    Timer,
    ValidateLastStep,
    Watchdog,
)
"""Callbacks with such hooks that do something only at watched steps."""


class FastSteps(Callback):
    """Takes the steps that nobody watches without Lightning's hooks around each of them.

    A step is watched if something follows it: a line in the log, a validation, the end of the run, or of an epoch
    of several steps. Those go through the Trainer as ever. The others are taken in one go just before the loader
    hands out the next watched batch, and are entered into the Trainer's counters: the arithmetic, the order of
    batches, `global_step`, the logs and the checkpoints are those of the plain path. Where every step matters to
    somebody, it steps aside and says so once.
    """

    def __init__(self) -> None:
        self.failed = False  # the weights were not finite after some of them

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has the loader ask before each batch."""
        loader = trainer.train_dataloader
        if type(pl_module) is not MLP or not isinstance(loader, Batches):
            return
        reason = reason_for_single_steps(trainer, loader)
        if reason:
            rank_zero_info(f"fast steps are off: {reason}")
        else:
            loader.before_batch.append(lambda: self.run_ahead(trainer, pl_module, loader))

    def run_ahead(self, trainer: Trainer, model: MLP, loader: Batches) -> bool:
        """Takes some of the unwatched steps before the next watched one; says whether there are more."""
        ahead = 0 if self.failed else steps_to_watched(trainer) - 1
        steps = min(ahead, max(1, ROWS_AT_ONCE // loader.batch_size))
        if steps > 0:
            (optimizer,), begin = trainer.optimizers, loader.step
            before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            X, Y = trainer.precision_plugin.convert_input(loader.take(steps))
            model.train_on(X, Y)
            if not all(parameter.isfinite().all() for parameter in model.parameters()):
                # Once more and one by one, so that the step that did it is known to all who watch.
                model.load_state_dict(before[0])
                optimizer.load_state_dict(before[1])
                loader.step, self.failed = begin, True
                return True
            count_steps(trainer, steps)
        model.set_lr()
        return steps < ahead


def one_step_epochs(trainer: Trainer) -> bool:
    """Says whether an epoch is a single step, as it is where all rows make one batch."""
    return trainer.num_training_batches == 1


def reason_for_single_steps(trainer: Trainer, loader: Batches) -> str:
    """Says why every step must go through the Trainer; empty if none must."""
    hooks = BATCH_HOOKS + (EPOCH_HOOKS if one_step_epochs(trainer) else ())
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    watchers = [
        type(callback).__name__
        for callback in callbacks
        if not isinstance(callback, (*MAY_MISS_STEPS, FastSteps))
        and any(is_overridden(hook, callback, Callback) for hook in hooks)
    ]
    timed = [
        callback
        for callback in callbacks
        if isinstance(callback, ModelCheckpoint)
        and (callback._every_n_train_steps or callback._train_time_interval or callback._save_on_train_epoch_end)
    ]
    reasons = {
        "several devices": trainer.world_size > 1,
        "gradients are accumulated": trainer.accumulate_grad_batches > 1,
        "gradients are clipped": trainer.gradient_clip_val is not None,
        f"precision {trainer.precision}": trainer.precision not in ("32-true", "64-true"),
        "anomalies are looked for": torch.is_anomaly_enabled(),
        "there is a profiler": not isinstance(trainer.profiler, PassThroughProfiler),  # type: ignore[attr-defined]
        "checkpoints go by training steps, epochs or time": bool(timed),
        "epochs are cut to one batch": one_step_epochs(trainer) and len(loader) > 1,
        "every epoch of one step is validated": one_step_epochs(trainer) and trainer.check_val_every_n_epoch == 1,
        f"{', '.join(watchers)} wants every step": bool(watchers),
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def steps_to_watched(trainer: Trainer) -> int:
    """Counts the steps up to and including the next one that something follows."""
    loop = trainer.fit_loop.epoch_loop
    total, in_epoch = loop.total_batch_idx + 1, loop.batch_idx + 1  # batches that are done
    candidates = [
        trainer.max_steps - trainer.global_step if trainer.max_steps > 0 else None,
        _rest(loop._batches_that_stepped, trainer.log_every_n_steps),  # type: ignore[attr-defined]
    ]
    if trainer.check_val_every_n_epoch is None:
        candidates.append(_rest(total, trainer.val_check_batch))
    elif one_step_epochs(trainer):
        candidates.append(_rest(trainer.current_epoch, trainer.check_val_every_n_epoch))
    else:
        candidates.append(_rest(in_epoch, trainer.val_check_batch))
    if not one_step_epochs(trainer):
        candidates.append(trainer.num_training_batches - in_epoch)
    elif trainer.max_epochs is not None and trainer.max_epochs > 0:
        candidates.append(trainer.max_epochs - trainer.current_epoch)
    return int(min(steps for steps in candidates if steps is not None))


def _rest(done: int, every: float | None) -> float | None:
    """The steps to the next multiple of `every`."""
    return every - done % every if every and every != float("inf") else None


def count_steps(trainer: Trainer, steps: int) -> None:
    """Enters steps into the Trainer's counters, as if it had taken them.

    They are not Lightning's public interface; the tests hold them against a run without `FastSteps`.
    """
    fit_loop = trainer.fit_loop
    loop = fit_loop.epoch_loop
    optimizer = loop.automatic_optimization.optim_progress.optimizer
    progresses = [loop.batch_progress, optimizer.step, optimizer.zero_grad]
    counters: list[object] = [progress.total for progress in progresses]
    if one_step_epochs(trainer):
        counters += [fit_loop.epoch_progress.total, fit_loop.epoch_progress.current]
    else:
        counters += [progress.current for progress in progresses]
        assert fit_loop._data_fetcher is not None
        fit_loop._data_fetcher.fetched += steps
    for counter in counters:
        for name in vars(counter):
            setattr(counter, name, getattr(counter, name) + steps)
    loop._batches_that_stepped += steps
