"""A resumed run is the same run: the flags of the Trainer that shape it are kept in its checkpoints.

Model and data are there already, as hyperparameters. A checkpoint is complete by itself, so a run resumes from it in
another folder too, and without a logger; config.yaml in the folder of the run is for the user, and written once.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from makemore_pl.checkpoint import ARCHITECTURE
from makemore_pl.commands.messages import say
from makemore_pl.optimization import Schedule, lr_factor
from makemore_pl.wordlist import recorded

KEPT = [
    *("max_steps", "max_epochs", "min_steps", "min_epochs", "max_time"),
    *("limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval", "check_val_every_n_epoch"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "log_every_n_steps", "precision"),
]
"""The flags of the Trainer that shape a run; its device, its folder and its callbacks may differ on resume."""


LINKED = ["block_size", "vocabulary"]
"""The hyperparameters that model and data share."""


class Recipe(Callback):
    """Keeps the flags that shape a run in its checkpoints, and tells where a resumed schedule has another end.

    Args:
        trainer: the flags of the Trainer.
    """

    def __init__(self, trainer: Namespace) -> None:
        self.flags = {name: trainer[name] for name in KEPT}
        self.steps = math.inf  # updates of the whole run
        self.steps_before: Any = None  # those of the run that is resumed

    def state_dict(self) -> dict[str, Any]:
        """Returns the flags, and the number of updates that the schedule is made for."""
        return {"trainer": self.flags, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the number of updates; the command line has read the flags."""
        self.steps_before = state_dict.get("steps") if isinstance(state_dict, dict) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a line if the learning rate changes with the end of its schedule."""
        schedule, before = pl_module.lr_schedulers(), self.steps_before
        if not isinstance(schedule, Schedule):
            return
        self.steps = schedule.steps
        if schedule.name == "constant" or before == self.steps or not isinstance(before, int | float):
            return
        lr, lr_before = (
            schedule.highest() * lr_factor(schedule.name, trainer.global_step, steps) for steps in (self.steps, before)
        )
        say(
            f"the {schedule.name} schedule now ends at step {self.steps:,} instead of {before:,}: "
            f"the next learning rate is {lr:.2g} instead of {lr_before:.2g}"
        )


def recipe(
    command: str, path: str, checkpoint: Mapping[str, Any], asked: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Joins the recipe of a checkpoint with the flags that the user has given, which win.

    The data is part of it for every command: validation must not run on words that were trained on.

    Args:
        command: its name; only `fit` takes the flags of the Trainer.
        path: of the checkpoint, for the errors.
        checkpoint: its content.
        asked: the flags that the user has given, by group.

    Returns:
        The options of trainer, model and data, and the changes to the recipe.

    Raises:
        ValueError: if a flag asks for another architecture, or for another optimizer on resume.
    """
    trainer, model, data = (dict(asked.get(group, {})) for group in ("trainer", "model", "data"))
    fixed, saved = checkpoint["hyper_parameters"], checkpoint.get("datamodule_hyper_parameters", {})
    for name in ARCHITECTURE + ["optimizer"] * (command == "fit"):
        if model.get(name, fixed[name]) != fixed[name]:
            raise ValueError(f"--model.{name} {model[name]}: the checkpoint has {fixed[name]}; omit the flag")
    kept = kept_flags(path, checkpoint) if command == "fit" else {}
    groups = {
        "trainer": {name: value for name, value in kept.items() if name not in trainer},
        "model": fixed | model,
        "data": {name: value for name, value in (saved | data).items() if name not in LINKED},
    }
    return groups, changes(kept, trainer) + changes(fixed, model) + changes(saved, data)


def kept_flags(path: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags of the Trainer that a checkpoint keeps; empty for one that a Trainer of one's own wrote.

    Raises:
        ValueError: if one has no plain value.
    """
    state: Any = checkpoint.get("callbacks")
    for name in ("Recipe", "trainer"):
        state = state.get(name) if isinstance(state, dict) else None
    flags = {name: state[name] for name in KEPT if name in state} if isinstance(state, dict) else {}
    for name, value in flags.items():
        values = value.values() if isinstance(value, dict) else [value]  # max_time may be {"minutes": 5}
        if not all(isinstance(each, str | int | float | None) for each in values):
            raise ValueError(f"{path}: not a checkpoint to resume from: its {name} is no plain value")
    return flags


def changes(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Lists the flags that the user changes: `max_steps 1000 instead of 500`."""
    changed = []
    for name, old in before.items():
        new = asked.get(name, old)
        if name in ("path", "teacher") and new is not None:
            new = recorded(new) if name == "path" else str(Path(new).absolute())
        if new != old:
            changed.append(f"{name} {new} instead of {old}".replace("None", "none"))
    return changed


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the folder of a new run; that of a resumed run stays as it is."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = run_folder(trainer) / "config.yaml"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, path, skip_unset=False)


def run_folder(trainer: Trainer) -> Path:
    """Returns the folder of a run, which holds its `checkpoints`: several runs may share that of their logger."""
    logger: Any = trainer.logger
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
