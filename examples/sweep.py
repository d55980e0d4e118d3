"""Searches for better sizes and a better learning rate, on any number of machines: `python examples/sweep.py`.

It needs optuna: `pip install -c constraints.txt -e '.[sweep]'`.
"""

import hashlib
import logging
import sys
import warnings
from pathlib import Path

import optuna
from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from optuna_integration import PyTorchLightningPruningCallback

from makemore_pl import MLP, NamesDataModule
from makemore_pl.commands.cli import TRAINER_DEFAULTS
from makemore_pl.commands.messages import fail
from makemore_pl.commands.parser import Parser
from makemore_pl.commands.process import keep_freed_memory, silence_stock_noise
from makemore_pl.commands.threads import Threads, choose_threads
from makemore_pl.datamodule import FULL_STEPS
from makemore_pl.terminal import command_line


def suggest(trial: optuna.Trial) -> dict[str, int | float]:
    """Draws the hyperparameters of a trial."""
    return {
        "block_size": trial.suggest_int("block_size", 2, 8),
        "embedding_dim": trial.suggest_int("embedding_dim", 2, 32, log=True),
        "hidden_size": trial.suggest_int("hidden_size", 50, 800, log=True),
        "lr": trial.suggest_float("lr", 0.005, 0.1, log=True),
    }


def sweep(
    trials: int = 20,
    storage: str = "sweep.journal",
    study: str = "makemore_pl",
    path: str | None = None,
    max_steps: int = 500,
    accelerator: str = "auto",
) -> None:
    """Trains many models and prints the `fit` command of the one with the lowest validation loss.

    Processes that name the same storage share one study: start any number, on any number of machines that reach it.
    Trials that do worse than the median of the others are cut short. A sweep that is started again resumes.

    Args:
        trials: the number of models in all processes together; each process may add one that it has begun.
        storage: a file, on a shared disk for several machines; or the URL of a database, such as sqlite:///sweep.db.
        study: its name there.
        path: a list of words, one a line, in UTF-8; names.txt if omitted.
        max_steps: of each training.
        accelerator: as for `fit`.

    Raises:
        ValueError: if a number is out of range, the list cannot be used, or the storage cannot hold the study.
    """
    if trials < 1 or max_steps < 1:
        raise ValueError(f"trials {trials} and max_steps {max_steps}: expected 1 or more")
    words = hashlib.sha256("\n".join(NamesDataModule(path).words).encode("utf-8", "surrogatepass")).hexdigest()

    def new_trainer(*callbacks: Callback) -> Trainer:
        return Trainer(
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[Threads(), *callbacks],
            **TRAINER_DEFAULTS | {"max_steps": max_steps},  # type: ignore[arg-type]
        )

    def train(trial: optuna.Trial) -> float:
        hparams = suggest(trial)
        data = NamesDataModule(path, block_size=int(hparams["block_size"]))
        model = MLP(data.vocabulary.characters, **hparams)  # type: ignore[arg-type]
        trainer = new_trainer(PyTorchLightningPruningCallback(trial, monitor="val/loss"))
        try:
            trainer.fit(model, data)
        except SystemExit:  # Lightning raises it after Ctrl-C and SIGTERM; Optuna knows KeyboardInterrupt
            raise KeyboardInterrupt from None
        return trainer.callback_metrics["val/loss"].item()

    new_trainer()  # refuses a missing accelerator before there is a study
    try:
        shared = optuna.create_study(
            storage=storage if "://" in storage else JournalStorage(JournalFileBackend(storage)),
            study_name=study,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=max_steps // FULL_STEPS // 5),  # in epochs
        )
    except Exception as error:  # each kind of storage raises its own
        raise ValueError(f"--storage {storage} cannot hold a study: {error}") from None
    for name, value in {"words": words, "max_steps": max_steps}.items():
        if shared.user_attrs.get(name, value) != value:
            raise ValueError(f"--storage {storage} holds a study with other {name}: use another --storage or --study")
        shared.set_user_attr(name, value)

    done = TrialState.COMPLETE, TrialState.PRUNED
    if len(shared.get_trials(deepcopy=False, states=done)) < trials:
        shared.optimize(train, callbacks=[MaxTrialsCallback(trials, states=done)])
    flags = [word for name, value in shared.best_params.items() for word in (f"--model.{name}", f"{value:g}")]
    flags += ["--trainer.max_steps", str(max_steps)]
    words: list[str | Path] = [*flags, "--data.path", Path(path)] if path else [*flags]
    number = shared.best_trial.number
    print(f"val/loss {shared.best_value:.4f}, by trial {number} of {len(shared.trials)}", file=sys.stderr)
    print(command_line("python", "-m", "makemore_pl", "fit", *words))


def main() -> None:
    """Runs the search as its flags say."""
    silence_stock_noise()
    keep_freed_memory()
    choose_threads(0)
    # The Trainer of each trial would print the machine's devices and that it has no logger.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    try:
        auto_cli(sweep, parser_class=Parser, description=str(sweep.__doc__).split("\n\n")[0])
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, MisconfigurationException) as error:
        fail(error)


if __name__ == "__main__":
    main()
