"""What `fit` takes for a list of your own where a flag is omitted: a function of three figures of the list.

The words of names.txt, in any order, keep the lecture's network. docs/results.md has the rule as a table, and results.
"""

from collections.abc import Callable
from typing import NamedTuple

PATIENCE = 8  # validations without a smaller loss, after which a run ends whose number of updates was chosen too

# Flags that also decide about another: where one of them is given, that one is not chosen.
TOGETHER = {
    "data.smoothing": ("data.steps_per_execution",),
    "model.lr": ("model.optimizer",),
    "model.weight_decay": ("model.optimizer",),
    "trainer.max_steps": ("trainer.max_",),
}


class Training(NamedTuple):
    """A row of the table in docs/results.md."""

    batch_size: int | None  # None: an update takes all windows
    smoothing: float
    weight_decay: float
    lr: float
    max_steps: int


def choose(windows: int, contexts: int, vocab_size: int, given: Callable[[str], bool]) -> list[str]:
    """Chooses flags for a list, unless they are `given`, and the EarlyStopping of a run whose length is chosen."""
    row = training(windows, contexts, vocab_size)
    chosen = {
        "data.batch_size": row.batch_size,
        "data.smoothing": row.smoothing,
        "model.embedding_dim": 32,
        "model.hidden_size": max(1, min(800, 2**20 // vocab_size)),  # a million weights in the output layer at most
        "model.lr": row.lr,
        "model.weight_decay": row.weight_decay,
        "trainer.max_steps": row.max_steps,
    }
    flags = [
        f"--{flag}={value}"
        for flag, value in chosen.items()
        if value is not None and not any(map(given, (flag, *TOGETHER.get(flag, ()))))
    ]
    if not any(map(given, ("trainer.max_", "trainer.min_", "trainer.callbacks"))):
        early = {"monitor": "val/loss", "patience": PATIENCE, "check_on_train_epoch_end": "false"}
        flags.append("--trainer.callbacks+=EarlyStopping")
        flags += [f"--trainer.callbacks.{name}={value}" for name, value in early.items()]
    return flags


def training(N: int, M: int, V: int) -> Training:
    """Finds the row for a training split of N windows with M distinct contexts, and V characters."""
    if M * V <= 2**20:  # small enough for updates that take all windows
        if N < 5 * M:  # a thousand words
            return Training(None, 0.8, 2.0, 0.015, 500)
        if N < 20 * M:  # some thousand words
            return Training(None, 0.8, 0.5, 0.015, 500)
        if N < 60 * M:  # some ten thousand words
            return Training(None, 0.5, 0.3, 0.015, 1000)
        return Training(None, 0.5, 0.01, 0.03, 1000)  # French words
    if N < 20 * V:  # few words, many characters
        return Training(256, 0.8, 2.0, 0.015, 400)
    if N < 200 * V:  # Chinese names and words: one pass, if that is more than 1,200 updates
        return Training(512, 0.0, 0.1, 0.02, min(max(1200, N // 512), 2000))
    if N < 20 * M:  # long contexts
        return Training(1024, 0.5, 0.3, 0.01, 1500)
    return Training(2048, 0.8, 0.01, 0.015, 1800)  # cities of the world
