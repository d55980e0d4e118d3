"""Words -> their probability under any callable that gives logits. Knows no Lightning, like sampling."""

from collections.abc import Sequence

import torch
from torch import Tensor

from makemore_pl.sampling import NextLogits
from makemore_pl.vocabulary import BOUNDARY, Vocabulary
from makemore_pl.windows import build_windows

WINDOWS_AT_ONCE = 2**15
"""Windows that are scored at a time."""


@torch.no_grad()
def score_words(
    words: Sequence[str],
    next_logits: NextLogits,
    vocabulary: Vocabulary,
    block_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Computes the log-probability of each word: of all its characters and of its end.

    Args:
        words: any number N of words.
        next_logits: contexts (B, T) int64 -> logits (B, V).
        vocabulary: of the V tokens.
        block_size: T.
        device: where `next_logits` computes.

    Returns:
        (N,) float64 natural logarithms, on the CPU.

    Raises:
        ValueError: if a word holds a character that the vocabulary does not.
    """
    X, Y = build_windows(words, vocabulary, block_size)
    parts = [torch.zeros(0, dtype=torch.float64)]
    for x, y in zip(torch.split(X, WINDOWS_AT_ONCE), torch.split(Y, WINDOWS_AT_ONCE), strict=True):
        logprobs = torch.log_softmax(next_logits(x.to(device)).float(), dim=1)
        parts.append(logprobs.cpu().gather(1, y[:, None])[:, 0].double())
    ends = (Y == BOUNDARY).nonzero()[:, 0]
    sums = torch.cat(parts).cumsum(0)[ends]
    return sums.diff(prepend=torch.zeros(1, dtype=torch.float64))
