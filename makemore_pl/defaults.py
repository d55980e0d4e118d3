"""What `fit` takes where a flag is omitted, from the size of the list."""

from typing import Any, NamedTuple

CELLS = 2**23
"""Up to this number, distinct contexts x characters, an update takes all windows: about 0.2 s on a core, 0.4 GB."""

BATCH_SIZE = 1024
"""Windows of an update if it does not take all."""


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


def choose(figures: Figures) -> dict[str, Any]:
    """Chooses what is to differ from the defaults of the signatures: the name of a flag -> its value."""
    if figures.contexts * figures.vocab_size <= CELLS:
        return {}
    return {"data.batch_size": BATCH_SIZE}
