"""Words -> windows, the examples a model learns from, and their counted form. Pure functions.

Shapes: N windows, M distinct contexts, P distinct pairs of a context and the character that came next, T block size
(context length), V vocabulary size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from makemore_pl.vocabulary import BOUNDARY, Vocabulary


def build_windows(words: Sequence[str], vocabulary: Vocabulary, block_size: int) -> tuple[Tensor, Tensor]:
    """Builds one window for every character and for the end of every word.

    "emma" at block size 3 gives `... -> e`, `..e -> m`, `.em -> m`, `emm -> a`, `mma -> .`
    (makemore part 2, "build the dataset").

    Args:
        words: in order.
        vocabulary: knows every character of the words.
        block_size: T, how many characters a context holds.

    Returns:
        X (N, T) int64 contexts and Y (N,) int64 next characters.

    Raises:
        ValueError: if a character is not in the vocabulary.
    """
    Y = vocabulary.encode_words(words)
    X = torch.zeros(len(Y), block_size, dtype=torch.int64)
    # Column t is the column to its right, one step earlier, cut off where the word begins.
    begins = torch.zeros(len(Y), dtype=torch.bool)
    begins[:1] = True
    begins[1:] = Y[:-1] == BOUNDARY
    column = Y
    for t in reversed(range(block_size)):
        X[1:, t] = column[:-1]
        column = X[:, t].masked_fill_(begins, BOUNDARY)
    return X, Y


@dataclass(frozen=True, eq=False)
class Counts:
    """Distinct contexts, and how often each character came next: only the P pairs that occur.

    Almost all of the contexts x V counts of a list are zero, and for an alphabet of thousands they would fill any
    memory. `counts[start:stop]` makes those of some contexts, as a loader or a loss takes them.
    """

    contexts: Tensor  # (M, T) int64, distinct, in lexicographic order
    row: Tensor  # (P,) int64, the place of a pair's context among them, ascending
    y: Tensor  # (P,) int64, the character that came next, ascending within a context
    n: Tensor  # (P,) int64, how often it did
    vocab_size: int  # V

    def __len__(self) -> int:
        """M, the number of contexts."""
        return len(self.contexts)

    def __getitem__(self, rows: slice) -> Tensor:
        """Makes the counts (stop - start, V) int64 of a slice of the contexts, most of them zero."""
        start, stop, _ = rows.indices(len(self))
        pairs = self.pairs(start, stop)
        counts = self.n.new_zeros(stop - start, self.vocab_size)
        return counts.index_put_((self.row[pairs] - start, self.y[pairs]), self.n[pairs])

    def pairs(self, start: int, stop: int) -> slice:
        """Finds the pairs of the contexts from `start` to `stop`."""
        return slice(*self._begin[[start, stop]].tolist())

    @cached_property
    def _begin(self) -> Tensor:
        # Where the pairs of each context begin, and where the last one's end: (M + 1,) on the CPU.
        return torch.searchsorted(self.row.cpu(), torch.arange(len(self) + 1))

    def totals(self) -> Tensor:
        """Counts the windows of each context, (M,) int64."""
        return self.n.new_zeros(len(self)).index_add_(0, self.row, self.n)

    def to(self, device: torch.device) -> "Counts":
        """Copies the counts to a device."""
        contexts, row, y, n = (each.to(device) for each in (self.contexts, self.row, self.y, self.n))
        return Counts(contexts, row, y, n, self.vocab_size)


def count_windows(X: Tensor, Y: Tensor, vocab_size: int, n: Tensor | None = None) -> Counts:
    """Collapses equal contexts X (N, T) into one, and counts what came next, Y (N,): each n (N,) times, or once.

    The mean cross-entropy over the contexts, weighted by their counts, is the mean over the windows, and so is its
    gradient: nothing is lost but the order.
    """
    contexts, row = distinct(X, vocab_size)
    keys, n = add_up(row * vocab_size + Y, torch.ones_like(Y) if n is None else n)
    return Counts(contexts, keys // vocab_size, keys % vocab_size, n, vocab_size)


def add_counts(first: Counts, second: Counts) -> Counts:
    """Adds two results of `count_windows`: returns the result for all their windows."""
    X = torch.cat([each.contexts[each.row] for each in (first, second)])
    return count_windows(X, torch.cat([first.y, second.y]), first.vocab_size, torch.cat([first.n, second.n]))


WORDS_PER_PART = 2**17  # about a million windows


def count_words(words: Sequence[str], vocabulary: Vocabulary, block_size: int) -> Counts:
    """Counts the windows of any number of words, part by part, without holding them all."""
    parts = (words[start : start + WORDS_PER_PART] for start in range(0, max(len(words), 1), WORDS_PER_PART))
    V = len(vocabulary)
    return reduce(add_counts, (count_windows(*build_windows(part, vocabulary, block_size), V) for part in parts))


def add_up(keys: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct keys, sorted, and the sum of the numbers n of each."""
    distinct, place = torch.unique(keys, return_inverse=True)
    return distinct, torch.zeros(len(distinct), dtype=n.dtype).index_add_(0, place, n)


def distinct(X: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Returns the distinct rows of X (N, T) in lexicographic order (M, T), and the place of each among them (N,)."""
    key, keys = torch.zeros(len(X), dtype=torch.int64), 1
    for x in X.unbind(1):
        if keys > 2**62 // vocab_size:  # a further character would not fit into 64 bits: renumber what there is
            key, keys = torch.unique(key, return_inverse=True)[1], len(X)
        key, keys = key * vocab_size + x, keys * vocab_size
    found, row = torch.unique(key, return_inverse=True)
    rows = torch.empty(len(found), X.shape[1], dtype=torch.int64)
    rows[row] = X
    return rows, row


CELLS_AT_ONCE = 2**22  # contexts x characters


def rows_at_once(vocab_size: int, most: int = 2**15) -> int:
    """Computes how many contexts to predict at a time, so that the memory is the same for any alphabet."""
    return max(1, min(most, CELLS_AT_ONCE // vocab_size))
