"""Words -> windows, the examples a model learns from, and their counted form. Pure functions.

Shapes: N windows, M distinct contexts, T block size (context length), V vocabulary size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from makemore_pl.memory import require_memory
from makemore_pl.vocabulary import BOUNDARY, Vocabulary

WORDS_PER_PART = 2**17
"""Words whose windows are held at a time while counting: about a million windows."""


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


def count_windows(X: Tensor, Y: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Collapses equal contexts into one row that counts what came next.

    The mean cross-entropy over the rows, weighted by their counts, is the mean over the windows, and so is its
    gradient: nothing is lost but the order.

    Args:
        X: (N, T) int64 contexts.
        Y: (N,) int64 next characters.
        vocab_size: V.

    Returns:
        The distinct contexts (M, T) int64 in lexicographic order, and their counts (M, V) int64.

    Raises:
        ValueError: if the counts would not fit into memory.
    """
    contexts, row = _group(X, vocab_size)
    _require_memory(2, contexts, vocab_size)
    counts = torch.bincount(row * vocab_size + Y, minlength=len(contexts) * vocab_size)
    return contexts, counts.view(-1, vocab_size)


def add_counts(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Adds two results of `count_windows`: returns the result for all their windows."""
    contexts, counts = align_counts(first, second)
    return contexts, counts[0] + counts[1]


def align_counts(*counted: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Gives several results of `count_windows` the same contexts, so that one forward pass is enough for all.

    Returns:
        The contexts that occur in any of them (M, T), and for each its counts (M, V), zero where it lacks a context.

    Raises:
        ValueError: if the counts would not fit into memory.
    """
    V = counted[0][1].shape[1]
    contexts, row = _group(torch.cat([X for X, _ in counted]), V)
    rows = torch.split(row, [len(X) for X, _ in counted])
    _require_memory(len(counted) + 2, contexts, V)
    empty = torch.zeros(len(contexts), V, dtype=torch.int64)
    return contexts, [empty.index_copy(0, row, counts) for row, (_, counts) in zip(rows, counted, strict=True)]


def _require_memory(copies: int, contexts: Tensor, vocab_size: int) -> None:
    # The one check of memory that is not at the edge: only here is the number of distinct contexts known. The number of
    # windows, its upper bound, would refuse most long lists, which fit.
    require_memory(8 * copies * len(contexts) * vocab_size, f"the counts of {len(contexts):,} contexts")


def count_words(words: Sequence[str], vocabulary: Vocabulary, block_size: int) -> tuple[Tensor, Tensor]:
    """Counts the windows of any number of words, part by part, without holding them all.

    Returns:
        What `count_windows` gives for `build_windows` of all words.
    """
    V = len(vocabulary)
    total = torch.zeros(0, block_size, dtype=torch.int64), torch.zeros(0, V, dtype=torch.int64)
    for start in range(0, len(words), WORDS_PER_PART):
        part = build_windows(words[start : start + WORDS_PER_PART], vocabulary, block_size)
        total = add_counts(total, count_windows(*part, V))
    return total


def _group(X: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
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
