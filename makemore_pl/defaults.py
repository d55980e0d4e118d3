"""What `fit` takes for a list of your own where a flag is omitted: a function of three figures of the list.

names.txt keeps the lecture's network. For other lists the figures are of the training split: N windows, M distinct
contexts, V characters.

| list | windows in an update | smoothing | weight decay | lr | updates | units |
|---|---|---|---|---|---|---|
| M V up to 2^20, N below 5 M (a thousand words) | all | 0.8 | 1 | 0.02 | 500 | 400 |
| ..., N below 20 M (some thousand words) | all | 0.8 | 0.5 | 0.02 | 500 | 400 |
| ..., more | all | 0.3 | 0.05 | 0.02 | 500 | 400 |
| M V more than 2^20, N below 20 V (few words, many characters) | 256 | 0.8 | 2 | 0.02 | 400 | 400 |
| ..., N below 200 V (Chinese names) | 512 | 0 | 0.3 | 0.02 | 800 | 400 |
| ..., more, N below 20 M (long contexts) | 1,024 | 0.5 | 0.3 | 0.01 | 1,500 | 400 |
| ..., more (cities of the world) | 2,048 | 0.8 | 0.01 | 0.006 | 1,800 | 800 |

Embeddings have 24 dimensions, 32 in the last row. An alphabet of thousands has fewer hidden units: at most 2^20 / V.
"""

from typing import Any, NamedTuple

CELLS = 2**20
"""Up to this number, distinct contexts x characters, an update takes all windows."""

WEIGHTS = 2**20
"""The most weights of the output layer, hidden units x characters: a larger alphabet has fewer hidden units."""

PATIENCE = 8
"""Validations in a row without a smaller loss after which a run ends, where the number of updates was chosen too."""


class Figures(NamedTuple):
    """The size of a training split.

    Args:
        windows: N, the examples.
        contexts: M, the distinct contexts among them.
        vocab_size: V.
    """

    windows: int
    contexts: int
    vocab_size: int


class Training(NamedTuple):
    """A row of the table."""

    batch_size: int | None
    smoothing: float
    weight_decay: float
    lr: float
    max_steps: int
    hidden_size: int = 400
    embedding_dim: int = 24


def choose(figures: Figures) -> dict[str, Any]:
    """Chooses options from the size of a list: the name of a flag -> its value."""
    chosen = training(figures)
    return {
        "data.batch_size": chosen.batch_size,
        "data.smoothing": chosen.smoothing,
        "model.embedding_dim": chosen.embedding_dim,
        "model.hidden_size": max(1, min(chosen.hidden_size, WEIGHTS // figures.vocab_size)),
        "model.lr": chosen.lr,
        "model.weight_decay": chosen.weight_decay,
        "trainer.max_steps": chosen.max_steps,
    }


def training(figures: Figures) -> Training:
    """Finds the row of the table."""
    N, M, V = figures
    if M * V <= CELLS:
        if N < 5 * M:
            return Training(None, 0.8, 1.0, 0.02, 500)
        if N < 20 * M:
            return Training(None, 0.8, 0.5, 0.02, 500)
        return Training(None, 0.3, 0.05, 0.02, 500)
    if N < 20 * V:
        return Training(256, 0.8, 2.0, 0.02, 400)
    if N < 200 * V:
        return Training(512, 0.0, 0.3, 0.02, 800)
    if N < 20 * M:
        return Training(1024, 0.5, 0.3, 0.01, 1500)
    return Training(2048, 0.8, 0.01, 0.006, 1800, 800, 32)
