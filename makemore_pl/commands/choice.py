"""What `fit` and `lr_find` take where a flag is omitted."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import EarlyStopping

from makemore_pl.commands.messages import say
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.defaults import PATIENCE, Figures, choose
from makemore_pl.model import MLP
from makemore_pl.optimization import as_list
from makemore_pl.wordlist import read_words, shipped

TOGETHER = {
    "data.batch_size": ("data.counted", "data.replacement"),
    "model.lr": ("model.optimizer",),
    "model.weight_decay": ("model.optimizer",),
    "trainer.max_steps": ("trainer.max_epochs", "trainer.max_time"),
}
"""For some flags those that also decide: where one is given, nothing is chosen."""


def fit_to_list(data: NamesDataModule, model: MLP, options: list[Namespace], given: Mapping[str, Any]) -> MLP:
    """Chooses what the user has not given from the size of a list, and prints it.

    A recipe is complete: with `--config` nothing is chosen. Nor is it for names.txt, which keeps the lecture's network,
    or for a list in pieces, which is too long to be counted twice.

    Args:
        data: of the list.
        model: not yet trained.
        options: of the command, before and after their classes are made; config.yaml keeps them.
        given: the flags of the user among them.

    Returns:
        The model, or one of other sizes.
    """
    if given.get("config") or given.get("data.path") is None or data.in_pieces or has_the_lectures_names(data.words):
        return model
    counts = data.count("train", together=False)["train"]
    figures = Figures(int(counts.n.sum()), len(counts), counts.vocab_size)
    chosen = {
        flag: value
        for flag, value in choose(figures).items()
        if not any(name in given for name in (flag, *TOGETHER.get(flag, ())))
    }
    for flag, value in chosen.items():
        for each in options[: 2 if flag.startswith("trainer.") else 1]:
            each[flag] = value
    of_data, of_model = (
        {flag.removeprefix(group): value for flag, value in chosen.items() if flag.startswith(group)}
        for group in ("data.", "model.")
    )
    data.hparams.update(of_data)
    data.hparams["counted"] = data.takes_all and data.hparams["counted"]
    # A flag and its value stay on one line.
    flags = [f"--{flag}\N{NO-BREAK SPACE}{value}" for flag, value in chosen.items() if value is not None]
    say(f"chosen for this list:{' nothing' * (not flags)}")
    for line in textwrap.wrap(" ".join(flags), 76, break_on_hyphens=False):
        say(f"  {line}".replace("\N{NO-BREAK SPACE}", " "))
    of_model = {name: value for name, value in of_model.items() if name in model.hparams}
    return type(model)(**{**model.hparams, **of_model})


def has_the_lectures_names(words: Sequence[str]) -> bool:
    """Whether a list has the words of names.txt, in any order: the makemore repository's own file has another one."""
    names = read_words(shipped("names.txt"))
    return len(words) == len(names) and sorted(words) == sorted(names)


def end_early(
    options: Namespace, given: Mapping[str, Any], checkpoint: Mapping[str, Any] | None
) -> list[EarlyStopping]:
    """Makes the callback that ends a run whose validation loss no longer falls, unless the user set its length.

    Args:
        options: of the command.
        given: the flags of the user among them.
        checkpoint: that the run resumes from; it has the callback again if it had it before.
    """
    trainer = options.trainer
    callback = EarlyStopping("val/loss", patience=PATIENCE, check_finite=False)
    length = [f"trainer.{name}" for name in ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs")]
    if checkpoint is not None and callback.state_key not in checkpoint.get("callbacks", {}):
        return []
    off = given.get("config") or trainer.fast_dev_run or trainer.overfit_batches or trainer.limit_val_batches == 0
    own = any(isinstance(each, EarlyStopping) for each in as_list(trainer.callbacks))
    return [] if off or own or any(name in given for name in length) else [callback]
