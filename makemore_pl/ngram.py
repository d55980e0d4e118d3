"""Counting instead of learning: interpolated, modified Kneser-Ney over the same windows. Knows no Lightning.

Shapes: B contexts to predict, M contexts counted, T block size (context length), V vocabulary size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from makemore_pl.vocabulary import Vocabulary
from makemore_pl.windows import count_words

DISCOUNT = 0.75
"""The amount subtracted from each count if there are too few counts to estimate it."""


class NGram:
    """Predicts the next character from how often it came after the last T characters, and after fewer of them.

    The counts after each context are discounted, and the probability that this frees goes to the prediction after the
    context that is shorter by one, down to the uniform distribution. A context shorter than T counts how many different
    characters came before it and the next one, not how often (Kneser and Ney 1995). Each length has three discounts
    (Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3).

    Like a network it takes contexts and returns logits, so sampling, scoring and evaluation take it as well.

    Args:
        X: (M, T) int64 distinct contexts, as `count_windows` returns them.
        counts: (M, V) int64, how often each character came next.
    """

    def __init__(self, X: Tensor, counts: Tensor) -> None:
        self.vocab_size, self.block_size = V, T = counts.shape[1], X.shape[1]
        # Contexts of k characters are numbered; `keys[k]` finds the number by that of the last k - 1 of them and the
        # one before, in one integer: number * V + character.
        self.keys, number = [torch.zeros(1, dtype=torch.int64)], torch.zeros(len(X), dtype=torch.int64)
        for t in reversed(range(T)):
            keys, number = torch.unique(number * V + X[:, t], return_inverse=True)
            self.keys.append(keys)
        row, y = counts.nonzero(as_tuple=True)
        pairs, n = _add_up(number[row] * V + y, counts[row, y].double())
        self.orders = []
        for keys in reversed(self.keys):
            self.orders.append(_Order(pairs, n, len(keys), V))
            shorter = keys[pairs // V] // V * V + pairs % V
            pairs, n = _add_up(shorter, torch.ones(len(shorter), dtype=torch.float64))
        self.orders.reverse()

    @classmethod
    def from_words(cls, words: list[str], vocabulary: Vocabulary, block_size: int) -> "NGram":
        """Counts the windows of some words."""
        return cls(*count_words(words, vocabulary, block_size))

    def __call__(self, context: Tensor) -> Tensor:
        """Computes the logits of the next character: the logarithms of its probabilities, which sum to 1.

        Args:
            context: (B, T) int64.

        Returns:
            (B, V) float64, on a GPU float32.
        """
        X, V = context.cpu(), self.vocab_size
        p = torch.full((len(X), V), 1 / V, dtype=torch.float64)
        number, known = torch.zeros(len(X), dtype=torch.int64), torch.ones(len(X), dtype=torch.bool)
        for k, (keys, order) in enumerate(zip(self.keys, self.orders, strict=True)):
            if k:
                wanted = number * V + X[:, -k]
                number = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
                known &= keys[number] == wanted
            rows = known.nonzero()[:, 0]
            p[rows] = order.interpolate(p[rows], number[rows])
        return p.log() if context.device.type == "cpu" else p.log().float().to(context.device)


class _Order:
    """The discounted counts of the contexts of one length.

    Args:
        pairs: (P,) int64 context * V + next character, distinct and sorted.
        n: (P,) float64 their counts.
        contexts: the number of contexts.
        vocab_size: V.
    """

    def __init__(self, pairs: Tensor, n: Tensor, contexts: int, vocab_size: int) -> None:
        context = pairs // vocab_size
        self.y = pairs % vocab_size
        discount = discounts(n)[n.clamp(max=3).long() - 1]
        zeros = torch.zeros(contexts, dtype=torch.float64)
        total = zeros.index_add(0, context, n)
        self.share = (n - discount) / total[context]
        self.freed = zeros.index_add(0, context, discount) / total
        self.end = torch.bincount(context, minlength=contexts).cumsum(0)

    def interpolate(self, p: Tensor, context: Tensor) -> Tensor:
        """Computes the predictions (B, V) after contexts (B,) of this length from those of the length below, p."""
        p = p * self.freed[context, None]
        length = self.end.diff(prepend=self.end.new_zeros(1))[context]
        row = torch.repeat_interleave(length)
        # The pairs of a context are adjacent: they are the `length` pairs before its end.
        pair = torch.arange(len(row)) + (self.end[context] - length.cumsum(0))[row]
        return p.index_put((row, self.y[pair]), self.share[pair], accumulate=True)


def discounts(n: Tensor) -> Tensor:
    """Estimates the discounts of counts of 1, 2, and 3 or more (Chen and Goodman 1999, equation 26).

    Args:
        n: (P,) counts, each 1 or more.

    Returns:
        (3,) float64, above 0 and at most 1, 2 and 3.
    """
    n1, n2, n3, n4 = ((n == count).sum().item() for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return torch.full((3,), DISCOUNT, dtype=torch.float64)
    Y = n1 / (n1 + 2 * n2)
    found = [1 - 2 * Y * n2 / n1, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3]
    return torch.tensor(found, dtype=torch.float64).clamp(min=Y)  # so that every context frees some probability


def smooth(Y: Tensor, P: Tensor, share: float) -> Tensor:
    """Mixes the characters that came next with a prediction, as targets for a network.

    Args:
        Y: (N,) int64 next characters, or (N, V) int64 counts of how often each came next.
        P: (N, V) predicted probabilities.
        share: the share of the prediction, from 0 to 1.

    Returns:
        (N, V) float32; each row sums to its number of windows.
    """
    seen = F.one_hot(Y, P.shape[1]) if Y.ndim == 1 else Y
    return torch.lerp(seen.to(P.dtype), P * seen.sum(dim=1, keepdim=True), share).float()


def _add_up(pairs: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct pairs, sorted, and the sum of the counts of each."""
    distinct, place = torch.unique(pairs, return_inverse=True)
    return distinct, torch.zeros(len(distinct), dtype=n.dtype).index_add_(0, place, n)
