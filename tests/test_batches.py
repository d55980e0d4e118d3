import itertools
from types import SimpleNamespace

import pytest
import torch

from makemore_pl.batches import Batches

ROWS = torch.arange(10), torch.arange(10) * 2


def rows(loader):
    """The rows of one epoch, item by item."""
    return [X.tolist() for X, _ in loader]


def test_without_a_seed_batches_are_slices_from_the_first_row_on():
    loader = Batches(ROWS, 4)
    assert len(loader) == 3
    next(iter(loader))  # as the Trainer's sanity check, which takes some batches
    assert rows(loader) == rows(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert rows(Batches(ROWS)) == [list(range(10))]


def test_rows_are_drawn_anew_from_all():
    loader = Batches(ROWS, 5, seed=1, replacement=True)
    X, Y = map(torch.cat, zip(*(loader.batch(update) for update in range(4000)), strict=True))
    assert torch.equal(Y, 2 * X)
    # 20,000 draws: each row 2,000 times, within five standard deviations of a binomial distribution.
    assert (torch.bincount(X, minlength=10) - 2000).abs().max() < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    # Some batches have a row twice: none of 10 * 9 * 8 * 7 * 6 of 10**5 has.
    distinct = sum(len(set(loader.batch(update)[0].tolist())) == 5 for update in range(4000))
    assert abs(distinct - 4000 * 0.3024) < 5 * (4000 * 0.3024 * 0.6976) ** 0.5


def test_without_replacement_each_pass_has_every_row_once_in_another_order():
    loader = Batches(ROWS, 4, seed=1)
    passes = [list(itertools.chain(*rows(loader))) for _ in range(5)]
    assert all(sorted(each) == list(range(10)) for each in passes)
    assert len(set(map(tuple, passes))) == 5


def test_a_batch_depends_on_the_seed_and_the_update_alone():
    first, again = Batches(ROWS, 4, seed=1), Batches(ROWS, 4, seed=1, steps_per_epoch=7)
    expected = [first.batch(update)[0].tolist() for update in range(50)]
    for update in torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist():
        assert again.batch(update)[0].tolist() == expected[update]
    assert [Batches(ROWS, 4, seed=2).batch(update)[0].tolist() for update in range(50)] != expected


@pytest.mark.parametrize("steps_per_epoch", [None, 1, 5])
def test_each_pass_begins_where_the_last_one_ended(steps_per_epoch):
    loader = Batches(ROWS, 4, seed=1, steps_per_epoch=steps_per_epoch)
    assert len(loader) == (steps_per_epoch or 3)
    seen = rows(itertools.islice(loader, 1)) + rows(loader) + rows(loader)  # the first pass is broken off
    assert seen == [loader.batch(update)[0].tolist() for update in range(1 + 2 * len(loader))]


@pytest.mark.parametrize("K", [2, 4, 8])
def test_blocks_hold_the_batches_of_their_updates(K):
    options = {"seed": 1, "replacement": True}
    loader = Batches(ROWS, 4, steps_per_epoch=8, steps_per_execution=K, **options)
    blocks = [*loader, *loader]
    assert [len(X) for X, _ in blocks] == [K] * (16 // K)
    assert torch.equal(torch.cat([Y for _, Y in blocks]), 2 * torch.cat([X for X, _ in blocks]))
    single = Batches(ROWS, 4, **options)
    assert torch.cat([X for X, _ in blocks]).tolist() == [single.batch(u)[0].tolist() for u in range(16)]


@pytest.mark.parametrize("options", [{}, {"seed": 1}, {"seed": 1, "replacement": True}])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_each_batch(world_size, options):
    ranks = [SimpleNamespace(global_rank=rank, world_size=world_size, training=False) for rank in range(world_size)]
    shares = [Batches(ROWS, 7, trainer=rank, **options) for rank in ranks]
    for parts, whole in zip(zip(*map(rows, shares), strict=True), rows(Batches(ROWS, 7, **options)), strict=True):
        assert list(itertools.chain(*parts)) == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
