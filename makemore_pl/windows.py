"""Words -> windows, the examples a model learns from, and their counted form. Pure functions.

Shapes: N windows, M distinct contexts, P distinct pairs of a context and the character that came next, T block size
(context length), V vocabulary size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

from makemore_pl.vocabulary import BOUNDARY, Vocabulary

WORDS_PER_PART = 2**17
"""Words whose windows are held at a time while counting: about a million windows."""

CELLS_AT_ONCE = 2**22
"""Predictions of single characters that are computed at a time, so that the memory is the same for any alphabet."""

ROWS_AT_ONCE = 2**15
"""The most contexts that are predicted at a time."""


def build_windows(words: Sequence[str], vocabulary: Vocabulary, block_size: int) -> tuple[Tensor, Tensor]:
    """Builds one window for every character and for the end of every word.

    "emma" at block size 3 gives `... -> e`, `..e -> m`, `.em -> m`, `emm -> a`, `mma -> .`
    (makemore part 2, "build the dataset").

    Args:
        words: the words, in order.
        vocabulary: knows every character of the words.
        block_size: T, how many characters a context holds, >= 1.

    Returns:
        X (N, T) int64 contexts and Y (N,) int64 next characters.

    Raises:
        ValueError: if block_size < 1, or a character is not in the vocabulary.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}: expected 1 or more")
    Y = vocabulary.encode_words(words)
    X = torch.zeros(len(Y), block_size, dtype=torch.int64)
    # The column t is the column to its right, one step earlier, cut off where the word begins.
    begins = torch.zeros(len(Y), dtype=torch.bool)
    begins[:1] = True
    begins[1:] = Y[:-1] == BOUNDARY
    column = Y
    for t in reversed(range(block_size)):
        X[1:, t] = column[:-1]
        column = X[:, t].masked_fill_(begins, BOUNDARY)
    return X, Y


def show_windows(X: Tensor, Y: Tensor, vocabulary: Vocabulary) -> str:
    """Draws windows as the notebook does, one a line: `emm --> a`."""
    pairs = zip(X.tolist(), Y.tolist(), strict=True)
    return "\n".join(f"{vocabulary.decode(x)} --> {vocabulary.decode([y])}" for x, y in pairs)


@dataclass(frozen=True, eq=False)
class Counts:
    """Distinct contexts, and how often each character came next: only the P pairs that occur.

    Almost all of the contexts x V counts of a list are zero, and for an alphabet of thousands they would fill any
    memory. `counts[start:stop]` makes those of some contexts, as a loader or a loss takes them.

    Args:
        contexts: (M, T) int64, distinct, in lexicographic order.
        row: (P,) int64, the place of a pair's context among them, ascending.
        y: (P,) int64, the character that came next, ascending within a context.
        n: (P,) int64, how often it did.
        vocab_size: V.
    """

    contexts: Tensor
    row: Tensor
    y: Tensor
    n: Tensor
    vocab_size: int

    @classmethod
    def empty(cls, block_size: int, vocab_size: int) -> "Counts":
        """Makes the counts of no windows."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(none.new_zeros(0, block_size), none, none, none, vocab_size)

    def __len__(self) -> int:
        """M, the number of contexts."""
        return len(self.contexts)

    def __getitem__(self, rows: slice) -> Tensor:
        """Makes the counts (rows, V) int64 of some contexts, most of them zero."""
        start, stop, _ = rows.indices(len(self))
        pairs = self.pairs(start, stop)
        counts = self.n.new_zeros(max(stop - start, 0), self.vocab_size)
        return counts.index_put_((self.row[pairs] - start, self.y[pairs]), self.n[pairs])

    def pairs(self, start: int, stop: int) -> slice:
        """Finds the pairs of the contexts from `start` to `stop`."""
        return slice(int(self._begin[start]), int(self._begin[max(start, stop)]))

    @cached_property
    def _begin(self) -> Tensor:
        """Where the pairs of each context begin, and where the last one's end: (M + 1,) on the CPU."""
        return torch.searchsorted(self.row.cpu(), torch.arange(len(self) + 1))

    def totals(self) -> Tensor:
        """Counts the windows of each context, (M,) int64."""
        return self.n.new_zeros(len(self)).index_add_(0, self.row, self.n)

    def to(self, device: torch.device) -> "Counts":
        """Copies the counts to a device."""
        return Counts(
            self.contexts.to(device), self.row.to(device), self.y.to(device), self.n.to(device), self.vocab_size
        )


def count_windows(X: Tensor, Y: Tensor, vocab_size: int) -> Counts:
    """Collapses equal contexts into one, and counts what came next.

    The mean cross-entropy over the contexts, weighted by their counts, is the mean over the windows, and so is its
    gradient: nothing is lost but the order.

    Args:
        X: (N, T) int64 contexts.
        Y: (N,) int64 next characters.
        vocab_size: V.
    """
    contexts, row = distinct(X, vocab_size)
    return _collect(contexts, row, Y, torch.ones_like(Y), vocab_size)


def add_counts(first: Counts, second: Counts) -> Counts:
    """Adds two results of `count_windows`: returns the result for all their windows."""
    contexts, row = distinct(torch.cat([first.contexts, second.contexts]), first.vocab_size)
    row = torch.cat([row[first.row], row[len(first) :][second.row]])
    return _collect(contexts, row, torch.cat([first.y, second.y]), torch.cat([first.n, second.n]), first.vocab_size)


def align_counts(*counted: Counts) -> list[Counts]:
    """Gives several results of `count_windows` the same contexts and pairs: one prediction is enough for all.

    Returns:
        For each its counts of the pairs that occur in any of them: 0 for one that it lacks.
    """
    union, V = reduce(add_counts, counted), counted[0].vocab_size
    aligned = []
    for own in counted:
        # Both are sorted, so each of its pairs is found among those of all.
        _, row = distinct(torch.cat([union.contexts, own.contexts]), V)
        pair = torch.searchsorted(union.row * V + union.y, row[len(union) :][own.row] * V + own.y)
        aligned.append(replace(union, n=torch.zeros_like(union.n).index_copy_(0, pair, own.n)))
    return aligned


def rows_at_once(vocab_size: int, most: int = ROWS_AT_ONCE) -> int:
    """Computes for how many contexts the predictions of all V characters are held at a time."""
    return max(1, min(most, CELLS_AT_ONCE // vocab_size))


def count_words(words: Sequence[str], vocabulary: Vocabulary, block_size: int) -> Counts:
    """Counts the windows of any number of words, part by part, without holding them all.

    Returns:
        What `count_windows` gives for `build_windows` of all words.
    """
    V = len(vocabulary)
    total = Counts.empty(block_size, V)
    for start in range(0, len(words), WORDS_PER_PART):
        part = count_windows(*build_windows(words[start : start + WORDS_PER_PART], vocabulary, block_size), V)
        total = add_counts(total, part) if start else part
    return total


def add_up(keys: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct keys, sorted, and the sum of the numbers n of each."""
    distinct, place = torch.unique(keys, return_inverse=True)
    return distinct, torch.zeros(len(distinct), dtype=n.dtype).index_add_(0, place, n)


def _collect(contexts: Tensor, row: Tensor, y: Tensor, n: Tensor, vocab_size: int) -> Counts:
    """Adds up equal pairs.

    Args:
        contexts: (M, T) int64, distinct and sorted.
        row: (N,) int64, the context of each pair.
        y: (N,) int64 next characters.
        n: (N,) int64 their counts.
        vocab_size: V.
    """
    keys, cells = row * vocab_size + y, len(contexts) * vocab_size
    if cells <= 4 * len(keys):  # few enough for a table, which is faster than sorting
        table = torch.zeros(cells, dtype=torch.int64).index_add_(0, keys, n)
        keys = table.nonzero()[:, 0]
        n = table[keys]
    else:
        keys, n = add_up(keys, n)
    return Counts(contexts, keys // vocab_size, keys % vocab_size, n, vocab_size)


def distinct(X: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Returns the distinct rows of X (N, T) in lexicographic order (M, T), and the place of each among them (N,)."""
    key, keys = torch.zeros(len(X), dtype=torch.int64), 1
    for x in X.unbind(1):
        if keys > 2**62 // vocab_size:  # a further character would not fit into 64 bits: renumber what there is
            key, keys = torch.unique(key, return_inverse=True)[1], len(X)
        key, keys = key * vocab_size + x, keys * vocab_size
    if keys <= max(len(X), 2**16):  # few enough for a table, which is faster than sorting
        seen = torch.zeros(keys, dtype=torch.int64)
        seen[key] = 1
        row = (seen.cumsum(0) - 1)[key]
        M = int(seen.sum())
    else:
        distinct, row = torch.unique(key, return_inverse=True)
        M = len(distinct)
    rows = torch.empty(M, X.shape[1], dtype=torch.int64)
    rows[row] = X
    return rows, row
