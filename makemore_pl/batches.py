"""Epochs of batches, in an order that is a pure function of the seed and the update.

Shapes: K updates, B batch, T block size (context length), V vocabulary size.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Batches:
    """Hands out batches of tensors that stay on their device; each is the batch of one update.

    Updates are counted over the whole run. Where a run resumes, the Trainer says which update comes next, so the loader
    keeps no state: the same update has the same batch, however often the run was stopped. One pass over the rows is
    shuffled as a whole, and passes follow each other without regard to where epochs end.

    Several processes share each batch: every row goes to one of them, and their shares differ by a row at most.

    Args:
        tensors: of equal length; a batch holds the same rows of each. All but the first may be columns that make the
            rows that they are indexed with.
        batch_size: rows per batch, over all processes; None for all rows at once.
        seed: of the order, a new one for each pass; None for the order of the rows.
        replacement: draw each row anew, as the notebook does, instead of every row once per pass.
        rank: which of the processes this one is.
        world_size: how many there are.
        steps_per_epoch: updates in an epoch; None for one pass.
        steps_per_execution: K, updates that are handed out together, as a block (K, B, ...). With 1, the default, there
            are no blocks, and a batch is (B, ...).
        next_update: gives the update that comes next, when an epoch begins; by default that is the first.
        max_steps: gives the number of updates at which the run ends; -1 for no end.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, Any],
        batch_size: int | None = None,
        seed: int | None = None,
        replacement: bool = False,
        rank: int = 0,
        world_size: int = 1,
        steps_per_epoch: int | None = None,
        steps_per_execution: int = 1,
        next_update: Callable[[], int] = lambda: 0,
        max_steps: Callable[[], int] = lambda: -1,
    ) -> None:
        self.tensors = tensors
        self.rows = len(tensors[0])
        self.batch_size = min(batch_size or self.rows, self.rows)
        self.seed = None if self.batch_size == self.rows and not replacement else seed
        self.replacement = replacement
        self.rank = rank
        self.world_size = world_size
        self.pass_length = -(-self.rows // self.batch_size)
        self.steps_per_epoch = steps_per_epoch or self.pass_length
        self.steps_per_execution = steps_per_execution
        self.next_update = next_update
        self.max_steps = max_steps
        self.order: Tensor | None = None  # of the rows, in the pass of that number
        self.ordered = -1

    def __len__(self) -> int:
        """The number of batches in an epoch, or of blocks."""
        return -(-self.steps_per_epoch // self.steps_per_execution)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Gives one epoch, from the update that comes next."""
        update = self.next_update()
        for _ in range(len(self)):
            if self.steps_per_execution == 1:
                yield self.batch(update)
                update += 1
            else:
                size = self._block_size(update)
                yield self.block(update, size)
                update += size

    def _block_size(self, update: int) -> int:
        """The updates of the block that begins with one: it ends with the epoch, and with the run."""
        size = min(self.steps_per_execution, self.steps_per_epoch - update % self.steps_per_epoch)
        left = self.max_steps() - update
        return min(size, left) if left > 0 else size

    def batch(self, update: int) -> tuple[Any, ...]:
        """Gives this process's share of the batch of an update: for each tensor (B, ...)."""
        rows = self._rows(update)
        return tuple(tensor[rows] for tensor in self.tensors)

    def block(self, update: int, size: int) -> tuple[Any, ...]:
        """Gives the batches of several updates: for each tensor (K, B, ...), or a list of K where sizes differ."""
        rows = [self._rows(update + k) for k in range(size)]
        if isinstance(rows[0], Tensor):
            if len({len(each) for each in rows}) == 1:
                index = torch.stack(rows)
                return tuple(tensor[index] for tensor in self.tensors)
        elif self.pass_length == 1:  # all rows each time: K views of them
            parts = (tensor[rows[0]] for tensor in self.tensors)
            return tuple(part.expand(size, *part.shape) for part in parts)
        return tuple([tensor[each] for each in rows] for tensor in self.tensors)

    def _rows(self, update: int) -> Any:
        """An index for this process's share of a batch."""
        number, batch = divmod(update, self.pass_length)
        size = self.pass_length * self.batch_size if self.replacement else self.rows
        start, end = batch * self.batch_size, min((batch + 1) * self.batch_size, size)
        first, last = ((end - start) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        rows = slice(start + first, start + last)
        if self.seed is None:
            return rows
        if self.ordered != number:
            # A string as the seed mixes its two numbers well: neighbouring seeds and passes share nothing.
            generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {number}").getrandbits(63))
            if self.replacement:
                order = torch.randint(self.rows, (size,), generator=generator)
            else:
                order = torch.randperm(self.rows, generator=generator)
            self.order, self.ordered = order.to(self.tensors[0].device), number
        assert self.order is not None
        return self.order[rows]
