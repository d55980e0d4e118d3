"""Searches for better sizes and a better learning rate: `python examples/sweep.py`, on any number of processes.

It needs optuna: `pip install -c constraints.txt -e '.[sweep]'`.
"""

import logging
import sys
import warnings

import optuna
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from optuna_integration import PyTorchLightningPruningCallback

from makemore_pl import MLP, NamesDataModule
from makemore_pl.parser import in_one_line
from makemore_pl.report import command_line


def sweep(trials: int = 20, path: str | None = None, max_steps: int = 500, storage: str = "sweep.journal") -> None:
    """Trains many networks and prints the `fit` command of the one with the lowest validation loss.

    Processes that name the same storage share one study; a later sweep adds to it. Trials that are worse than
    the median of the others end early.

    Args:
        trials: the number of networks, of all processes together.
        path: a list of words; names.txt if omitted.
        max_steps: updates of each.
        storage: a file, which holds the study.

    Raises:
        ValueError: if the list cannot be used, or a number is out of range.
    """
    words = NamesDataModule(path).digest
    torch.set_num_threads(1)  # small operations are faster so

    def train(trial: optuna.Trial) -> float:
        block_size = trial.suggest_int("block_size", 2, 8)
        data = NamesDataModule(path, block_size=block_size)
        model = MLP(
            data.vocabulary.characters,
            block_size,
            embedding_dim=trial.suggest_int("embedding_dim", 2, 32, log=True),
            hidden_size=trial.suggest_int("hidden_size", 50, 800, log=True),
            lr=trial.suggest_float("lr", 0.005, 0.1, log=True),
        )
        pruning = PyTorchLightningPruningCallback(trial, monitor="val/loss")
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(max_steps=max_steps, enable_progress_bar=False, callbacks=[pruning], **quiet)
        trainer.fit(model, data)
        return trainer.callback_metrics["val/loss"].item()

    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(storage)),
        study_name=f"{words[:16]}, {max_steps} steps",  # another list or length is another study
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=max_steps // 100),  # validations
    )
    done = TrialState.COMPLETE, TrialState.PRUNED
    if len(study.get_trials(deepcopy=False, states=done)) < trials:
        study.optimize(train, callbacks=[MaxTrialsCallback(trials, states=done)])
    flags = [f"--model.{name}={value:g}" for name, value in study.best_params.items()]
    flags += [f"--trainer.max_steps={max_steps}", *([f"--data.path={path}"] if path else [])]
    print(f"val/loss {study.best_value:.4f}, by trial {study.best_trial.number}", file=sys.stderr)
    print(command_line(MLP, "fit", *flags))


if __name__ == "__main__":
    # The Trainer of each trial would print the machine's devices and that it has no logger.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    with in_one_line():
        auto_cli(sweep)
