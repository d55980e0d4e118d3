"""Counting instead of learning: interpolated, modified Kneser-Ney over the same windows. Knows no Lightning.

Shapes: B contexts to predict, R of them, N windows, P distinct pairs of a context and the character that came next,
T block size (context length), V vocabulary size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from makemore_pl.sampling import NextLogits
from makemore_pl.vocabulary import Vocabulary
from makemore_pl.windows import Counts, add_up, count_words, distinct


class NGram:
    """Predicts the next character from how often it came after the last T characters, and after fewer of them.

    The counts after each context are discounted, and the probability that this frees goes to the prediction after the
    context that is shorter by one, down to the uniform distribution. A context shorter than T counts how many different
    characters came before it and the next one, not how often (Kneser and Ney 1995). Each length has three discounts
    (Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3).

    Like a network it takes contexts and returns logits, so sampling, scoring and evaluation take it as well.
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
        """Computes the logarithms (B, V) of the probabilities of the next character after contexts (B, T) int64."""
        X = context.cpu()
        p = self.unigram.repeat(len(X), 1)
        number, known = torch.zeros(len(X), dtype=torch.int64), torch.ones(len(X), dtype=torch.bool)
        for k in range(1, len(self.orders)):
            wanted = number * self.vocab_size + X[:, -k]
            number = torch.searchsorted(self.keys[k], wanted).clamp_(max=len(self.keys[k]) - 1)
            known &= self.keys[k][number] == wanted
            rows = known.nonzero()[:, 0]
            self.orders[k].interpolate(p, rows, number[rows])
        p = p.log_()
        return p if context.device.type == "cpu" else p.float().to(context.device)


class _Order:
    """The contexts of one length: discounted counts n (P,) of sorted pairs (P,), context * V + next character."""

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
        """Turns R rows of predictions p (B, V), made after contexts shorter by one, into those after these contexts."""
        freed = p.new_ones(len(p)).index_copy_(0, rows, self.freed[context])
        p *= freed[:, None]
        length = self.end.diff(prepend=self.end.new_zeros(1))[context]
        row = torch.repeat_interleave(length)
        # The pairs of a context are adjacent: they are the `length` pairs before its end.
        pair = torch.arange(len(row)) + (self.end[context] - length.cumsum(0))[row]
        p.index_put_((rows[row], self.pairs[pair] % self.vocab_size), self.share[pair], accumulate=True)


def discounts(n: Tensor) -> Tensor:
    """Estimates the discounts (3,) of counts n (P,) of 1, 2, and 3 or more (Chen and Goodman 1999, equation 26)."""
    n1, n2, n3, n4 = ((n == count).sum().item() for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return torch.full((3,), 0.75, dtype=torch.float64)  # too few counts to estimate them
    Y = n1 / (n1 + 2 * n2)
    found = [1 - 2 * Y * n2 / n1, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3]
    return torch.tensor(found, dtype=torch.float64).clamp(min=Y)  # so that every context frees some probability


@dataclass
class Smoothed:
    """Targets of contexts X (N, T), made where they are indexed: those of all N windows may not fit into memory.

    `targets[rows]` is (B, V) float32, for a slice or (B,) int64: what came next, Y (N,) or the counts of N contexts,
    mixed with a share from 0 to 1 of what is expected. Each row sums to its number of windows.
    """

    X: Tensor
    Y: Tensor | Counts
    expected: NextLogits
    vocab_size: int
    share: float
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def __getitem__(self, rows: Any) -> Tensor:
        rows = rows.cpu() if isinstance(rows, Tensor) else rows
        # A quarter of the windows of short words have the same context, the empty one.
        contexts, place = distinct(self.X[rows], self.vocab_size)
        P, seen = self.expected(contexts).exp()[place], self.Y[rows]
        if seen.ndim == 1:
            seen = F.one_hot(seen, self.vocab_size)
        return torch.lerp(seen.to(P.dtype), P * seen.sum(dim=1, keepdim=True), self.share).float().to(self.device)
