"""The batch of an update, as a pure function of the seed and the update.

Shapes: K updates, B batch, T block size (context length), V vocabulary size.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


@dataclass(eq=False)
class Batches:
    """Hands out batches of tensors that stay on their device.

    An item is the batch of one update, or a block of several. Items are counted over the whole run: during a fit, the
    Trainer, whose checkpoints hold how many it took, says which one is next. Outside of a fit, each pass through the
    loader begins where the last one ended. Several processes share the rows of each batch.
    """

    tensors: tuple[Any, Any]  # X (N, T) and Y (N,) or (N, V); or objects that compute rows when they are indexed
    batch_size: int = 0  # B, rows per batch over all processes; 0: all rows
    seed: int | None = None  # for an order that is new in each pass over the rows; None: each epoch in order
    replacement: bool = False  # draw each row of a batch anew from all N, as in the lecture
    steps_per_epoch: int = 0  # updates in an epoch; 0: one pass
    steps_per_execution: int = 1  # K, updates in an item; above 1 it is a block, X (K, B, T) and Y (K, B)
    trainer: Trainer | None = None

    def __post_init__(self) -> None:
        self.rank, self.world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        N = len(self.tensors[0])
        self.batch_size = self.batch_size or N
        self.pass_length = -(-N // self.batch_size)  # in updates
        self.steps_per_epoch = self.steps_per_epoch or self.pass_length
        assert self.steps_per_epoch % self.steps_per_execution == 0
        self.next_item = 0
        self.order: tuple[int, Tensor] | None = None  # the number of a pass, and its rows

    def __len__(self) -> int:
        """The number of items in an epoch."""
        return self.steps_per_epoch // self.steps_per_execution

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the items of one epoch, from the next one on."""
        K, first = self.steps_per_execution, 0 if self.seed is None else self._next()
        for item in range(first, first + len(self)):
            self.next_item = item + 1
            rows = [self._rows(update) for update in range(item * K, (item + 1) * K)]
            yield self._take(rows[0] if K == 1 else torch.stack(rows))

    def _next(self) -> int:
        if self.trainer is None or not self.trainer.training:
            return self.next_item
        # Not `total_batch_idx`, which also counts a batch whose step was interrupted.
        taken = self.trainer.fit_loop.epoch_loop.batch_progress
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return taken.current.completed  # of this epoch: each takes the same few batches
        return taken.total.completed

    def batch(self, update: int) -> tuple[Tensor, Tensor]:
        """Returns this process's share of the batch of an update: X (B, T) and Y (B,) or (B, V)."""
        return self._take(self._rows(update))

    def _take(self, rows: Any) -> tuple[Tensor, Tensor]:
        X, Y = self.tensors
        return X[rows], Y[rows]

    def _rows(self, update: int) -> Any:
        """Returns the rows of this process's share of a batch: a slice, or (B,) int64."""
        N = len(self.tensors[0])
        number, batch = divmod(update, self.pass_length)
        start = batch * self.batch_size
        size = self.batch_size if self.replacement else min(self.batch_size, N - start)
        first, last = (start + size * rank // self.world_size for rank in (self.rank, self.rank + 1))
        if self.seed is None:
            return slice(first, last)
        if self.order is None or self.order[0] != number:
            # A string as the seed mixes its two numbers well: neighbouring seeds and passes share nothing.
            generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {number}").getrandbits(63))
            if self.replacement:
                rows = torch.randint(N, (self.pass_length * self.batch_size,), generator=generator)
            else:
                rows = torch.randperm(N, generator=generator)
            self.order = number, rows.to(self.tensors[0].device)
        return self.order[1][first:last]
