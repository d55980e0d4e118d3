"""Where no GPU is at hand: steps on fake tensors of another device find what would have stayed on the CPU.

A fake tensor knows its shape and device and holds no numbers, so whatever needs a number on the host fails as well.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from makemore_pl import MLP, NamesDataModule, Sampler
from makemore_pl.batches import Batches
from makemore_pl.sampling import Draw

ELSEWHERE = torch.device("meta")


class OneDevice:
    global_rank, world_size, global_step = 0, 1, 0
    testing = training = False
    train_dataloader, lightning_module = None, MLP()

    class strategy:
        root_device = ELSEWHERE

        @staticmethod
        def reduce(tensor, reduce_op):
            return tensor


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def place(**options):
    """A model elsewhere, and what it logs. Built outside of fake tensors: metrics cannot be copied among them."""
    model, logged = MLP(**options).to(ELSEWHERE), {}
    model._trainer = OneDevice()
    model.log = lambda name, value, **_: logged.update({name: value})
    return model, logged


def batches(counted):
    """Fake data of the shapes of the real ones, in the project's own loader."""
    X = torch.zeros(50, 3, dtype=torch.int64, device=ELSEWHERE)
    Y = torch.zeros((50, 27) if counted else 50, dtype=torch.int64, device=ELSEWHERE)
    return Batches((X, Y), None if counted else 16, seed=1)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_stays_on_its_device(dtype, counted, request):
    model, logged = place()
    model.to(dtype)
    request.getfixturevalue("fake")
    steps = 0
    for number, batch in enumerate(batches(counted)):
        loss = model.training_step(batch, number)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert {tensor.device for tensor in (loss, logged["train/loss"], *gradients)} == {ELSEWHERE}
        assert loss.dtype == torch.float32
        steps += 1
    assert steps == (1 if counted else 4)


@pytest.mark.parametrize("counted", [True, False])
def test_validation_stays_on_its_device(counted, request):
    model, logged = place()
    request.getfixturevalue("fake")
    model.on_validation_epoch_start()
    for number, batch in enumerate(batches(counted)):
        model.validation_step(batch, number)
    model.on_validation_epoch_end()
    assert logged.keys() == {"val/loss", "val/perplexity", "val/accuracy"}
    assert {(value.device, value.dtype) for value in logged.values()} == {(ELSEWHERE, torch.float32)}


@pytest.mark.parametrize("block_size", [2, 5])  # with a table of all contexts, and without
def test_drawing_stays_on_its_device(block_size, request):
    model, _ = place(block_size=block_size)
    request.getfixturevalue("fake")
    draw = Draw(Sampler(top_k=5), model, model.vocabulary, block_size, ELSEWHERE)
    assert draw.looks_up == (block_size == 2)
    context = torch.zeros(8, block_size, dtype=torch.int64, device=ELSEWHERE)
    for may_end in (False, True, True):
        token = draw.next(context, torch.zeros(8, device=ELSEWHERE), may_end)
        assert token.device == context.device == ELSEWHERE


def test_the_net_is_fine_enough(request):
    """It would notice a tensor left on the CPU, and a number read on the host."""
    model, _ = place()
    request.getfixturevalue("fake")
    ((X, Y),) = batches(counted=True)
    with pytest.raises(RuntimeError, match="device"):
        model(X) + torch.zeros(50, 27)
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        float(model.loss(model(X), Y).detach())
    with pytest.raises(RuntimeError, match="nonzero"):
        X[X[:, 0] > 0]


def test_data_are_placed_on_the_device_of_their_trainer():
    data = NamesDataModule(num_words=50, batch_size=8)
    data.trainer = OneDevice()
    data.setup("fit")
    X, Y = next(iter(data.train_dataloader()))
    assert X.device == Y.device == ELSEWHERE
