import itertools

import pytest
import torch

from makemore_pl.batches import Batches

ROWS = torch.arange(10), torch.arange(10) * 2


def updates(loader, number):
    """The rows of the first updates, one by one."""
    return [loader.batch(update)[0].tolist() for update in range(number)]


def test_without_a_seed_batches_are_slices():
    loader = Batches(ROWS, 4)
    assert len(loader) == 3
    assert [x.tolist() for x, _ in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert updates(Batches(ROWS, None, seed=1), 2) == [list(range(10))] * 2


def test_every_row_comes_once_a_pass_in_an_order_of_its_own():
    found = updates(Batches(ROWS, 4, seed=1), 6)
    for each in (found[:3], found[3:]):
        assert sorted(row for batch in each for row in batch) == list(range(10))
        assert [len(batch) for batch in each] == [4, 4, 2]
    assert found[:3] != found[3:]
    assert updates(Batches(ROWS, 4, seed=1), 6) == found
    assert updates(Batches(ROWS, 4, seed=2), 3) != found[:3]


@pytest.mark.parametrize("steps_per_epoch", [None, 1, 2, 5, 7])
@pytest.mark.parametrize("stop", range(9))
def test_any_epoch_begins_where_the_last_one_ended(stop, steps_per_epoch):
    """Whatever an epoch is, and wherever a run was stopped, the updates are the same."""
    taken, seen = 0, []
    loader = Batches(ROWS, 4, seed=1, steps_per_epoch=steps_per_epoch, next_update=lambda: taken)
    assert len(loader) == (steps_per_epoch or 3)
    while taken < stop:
        for x, _ in itertools.islice(loader, stop - taken):
            seen.append(x.tolist())
            taken += 1
    again = Batches(ROWS, 4, seed=1, next_update=lambda: taken)
    seen += [x.tolist() for x, _ in again]
    assert seen == updates(Batches(ROWS, 4, seed=1), stop + 3)


def test_rows_of_all_tensors_stay_together():
    for x, y in Batches(ROWS, 3, seed=1):
        assert torch.equal(x * 2, y)


def test_with_replacement_rows_repeat():
    rows = [row for batch in updates(Batches(ROWS, 5, seed=1, replacement=True), 40) for row in batch]
    counts = torch.bincount(torch.tensor(rows), minlength=10)
    assert counts.sum() == 200
    assert counts.min() < 20 < counts.max()
    assert not torch.equal(counts, torch.full((10,), 20))


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("steps_per_epoch", [None, 5, 8])
@pytest.mark.parametrize("size", [2, 3, 100])
def test_blocks_hold_the_batches_of_their_updates(size, steps_per_epoch, replacement):
    """Blocks end with the epoch and with the run, of 19 updates, and where batches differ in size they are lists."""
    order = {"batch_size": 4, "seed": 1, "replacement": replacement}
    taken, seen, lengths = 0, [], []
    loader = Batches(
        ROWS,
        **order,
        steps_per_epoch=steps_per_epoch,
        steps_per_execution=size,
        next_update=lambda: taken,
        max_steps=lambda: 19,
    )
    while taken < 19:
        for X, Y in loader:
            assert all(torch.equal(2 * x, y) for x, y in zip(X, Y, strict=True))
            seen += [x.tolist() for x in X]
            lengths.append(len(X))
            taken += len(X)
            if taken == 19:
                break
    assert seen == updates(Batches(ROWS, **order), 19)
    epoch = steps_per_epoch or 3
    ends = set(itertools.accumulate(lengths))
    assert max(lengths) == min(size, epoch)
    assert set(range(epoch, 20, epoch)) <= ends
    assert len(loader) == -(-epoch // size)


def test_blocks_of_equal_batches_are_tensors():
    X, Y = Batches(ROWS, 5, seed=1, steps_per_execution=2).block(0, 2)
    assert X.shape == Y.shape == (2, 5)


def test_a_block_of_all_rows_takes_no_memory():
    X, _ = Batches(ROWS, None, steps_per_execution=5, steps_per_epoch=5).block(0, 5)
    assert X.shape == (5, 10)
    assert X.untyped_storage().nbytes() == ROWS[0].nbytes


def test_all_rows_drawn_anew_differ_from_pass_to_pass():
    found = updates(Batches(ROWS, None, seed=1, replacement=True), 6)
    assert len({tuple(batch) for batch in found}) == 6
