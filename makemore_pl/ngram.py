"""Counting instead of learning: interpolated, modified Kneser-Ney over the same windows. Knows no Lightning.

Shapes: B contexts to predict, N windows, T block size (context length), V vocabulary size.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from makemore_pl.sampling import NextLogits
from makemore_pl.vocabulary import Vocabulary
from makemore_pl.windows import Counts, add_up, count_words, distinct

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
        counts: of the windows to learn from.
    """

    def __init__(self, counts: Counts) -> None:
        X, self.vocab_size = counts.contexts, counts.vocab_size
        self.block_size, V = X.shape[1], self.vocab_size
        # Contexts of k characters are numbered; `keys[k]` finds the number by that of the last k - 1 of them and the
        # one before, in one integer: number * V + character.
        self.keys, number = [torch.zeros(1, dtype=torch.int64)], torch.zeros(len(X), dtype=torch.int64)
        for t in reversed(range(self.block_size)):
            keys, number = torch.unique(number * V + X[:, t], return_inverse=True)
            self.keys.append(keys)
        pairs, n = add_up(number[counts.row] * V + counts.y, counts.n.double())
        self.orders = []
        for keys in reversed(self.keys):
            self.orders.append(_Order(pairs, n, len(keys), V))
            shorter = keys[pairs // V] // V * V + pairs % V
            pairs, n = add_up(shorter, torch.ones(len(shorter), dtype=torch.float64))
        self.orders.reverse()
        self.unigram = torch.full((1, V), 1 / V, dtype=torch.float64)
        self.orders[0].interpolate(self.unigram, torch.zeros(1).long(), torch.zeros(1).long())

    @classmethod
    def from_words(cls, words: list[str], vocabulary: Vocabulary, block_size: int) -> "NGram":
        """Counts the windows of some words."""
        return cls(count_words(words, vocabulary, block_size))

    def __call__(self, context: Tensor) -> Tensor:
        """Computes the logits of the next character: the logarithms of its probabilities, which sum to 1.

        Args:
            context: (B, T) int64.

        Returns:
            (B, V) float64, on a GPU float32.
        """
        X = context.cpu()
        p = self.unigram.repeat(len(X), 1)
        for order, rows, number in self._known(X):
            order.interpolate(p, rows, number)
        p = p.log_()
        return p if context.device.type == "cpu" else p.float().to(context.device)

    def log_likelihoods(self, context: Tensor, y: Tensor) -> Tensor:
        """Computes the log-probability of one next character each, in far less time than those of all V.

        Args:
            context: (B, T) int64.
            y: (B,) int64.

        Returns:
            (B,) float64.
        """
        p = self.unigram[0, y]
        for order, rows, number in self._known(context):
            p[rows] = p[rows] * order.freed[number] + order.shares(number, y[rows])
        return p.log_()

    def _known(self, context: Tensor) -> Iterator[tuple["_Order", Tensor, Tensor]]:
        """Yields the orders above the unigram, which of the contexts (B, T) were counted there, and their numbers."""
        number, known = torch.zeros(len(context), dtype=torch.int64), torch.ones(len(context), dtype=torch.bool)
        for k in range(1, len(self.orders)):
            wanted = number * self.vocab_size + context[:, -k]
            number = torch.searchsorted(self.keys[k], wanted).clamp_(max=len(self.keys[k]) - 1)
            known &= self.keys[k][number] == wanted
            rows = known.nonzero()[:, 0]
            yield self.orders[k], rows, number[rows]


class _Order:
    """The discounted counts of the contexts of one length.

    Args:
        pairs: (P,) int64 context * V + next character, distinct and sorted.
        n: (P,) float64 their counts.
        contexts: the number of contexts.
        vocab_size: V.
    """

    def __init__(self, pairs: Tensor, n: Tensor, contexts: int, vocab_size: int) -> None:
        self.pairs, self.vocab_size = pairs, vocab_size
        context = pairs // vocab_size
        discount = discounts(n)[n.clamp(max=3).long() - 1]
        zeros = torch.zeros(contexts, dtype=torch.float64)
        total = zeros.index_add(0, context, n)
        self.share = (n - discount) / total[context]
        self.freed = zeros.index_add(0, context, discount) / total
        self.end = torch.bincount(context, minlength=contexts).cumsum(0)

    def interpolate(self, p: Tensor, rows: Tensor, context: Tensor) -> None:
        """Makes the predictions after some contexts of this length, in place, from those of the length below.

        Args:
            p: (B, V), of the length below.
            rows: (R,) int64, those to make.
            context: (R,) int64, their contexts of this length.
        """
        freed = p.new_ones(len(p)).index_copy_(0, rows, self.freed[context])
        p *= freed[:, None]
        length = self.end.diff(prepend=self.end.new_zeros(1))[context]
        row = torch.repeat_interleave(length)
        # The pairs of a context are adjacent: they are the `length` pairs before its end.
        pair = torch.arange(len(row)) + (self.end[context] - length.cumsum(0))[row]
        p.index_put_((rows[row], self.pairs[pair] % self.vocab_size), self.share[pair], accumulate=True)

    def shares(self, context: Tensor, y: Tensor) -> Tensor:
        """Looks up the discounted shares of next characters (B,) after contexts (B,): 0 if one was not counted."""
        wanted = context * self.vocab_size + y
        pair = torch.searchsorted(self.pairs, wanted).clamp_(max=len(self.pairs) - 1)
        return torch.where(self.pairs[pair] == wanted, self.share[pair], 0.0)


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


class Smoothed:
    """Targets smoothed by a prediction, made where they are indexed: those of all N windows may not fit into memory.

    Args:
        X: (N, T) int64 contexts.
        Y: (N,) int64 next characters, or the counts of N distinct contexts.
        expected: contexts (B, T) int64 -> logits (B, V).
        vocab_size: V.
        share: the share of the prediction, from 0 to 1.
        device: where the targets are needed; they are made on the CPU.
    """

    def __init__(
        self,
        X: Tensor,
        Y: Tensor | Counts,
        expected: NextLogits,
        vocab_size: int,
        share: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.X, self.Y, self.expected = X, Y, expected
        self.vocab_size, self.share, self.device = vocab_size, share, device

    def __len__(self) -> int:
        return len(self.X)

    @torch.no_grad()
    def __getitem__(self, rows: Any) -> Tensor:
        """Makes the targets of some windows: (B, V) float32, or (K, B, V) for rows (K, B)."""
        rows = rows.cpu() if isinstance(rows, Tensor) else rows
        X, Y = self.X[rows], self.Y[rows]
        # A quarter of the windows of short words have the same context, the empty one.
        contexts, place = distinct(X.flatten(0, -2), self.vocab_size)
        P = self.expected(contexts).exp()[place]
        Y = smooth(Y if isinstance(self.Y, Counts) else Y.flatten(), P, self.share)
        return Y.view(*X.shape[:-1], self.vocab_size).to(self.device)


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
