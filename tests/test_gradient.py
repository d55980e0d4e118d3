import notebook
import pytest
import torch

from makemore_pl.gradient import sgd_steps, tanh


# Twice a sigmoid near 1, which each processor's exponential may get wrong by a unit or two in the last place.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 8e-16), (torch.float32, 4e-7), (torch.bfloat16, 4e-3)]
)
def test_tanh_is_tanh(dtype, tolerance):
    x = torch.cat([torch.linspace(-12, 12, 10_001), torch.tensor([0.0, -1e-9, 1e-9, 1e4, -1e4, torch.inf, -torch.inf])])
    x = x.to(dtype)
    expected = torch.tanh(x.double())
    torch.testing.assert_close(tanh(x).double(), expected, rtol=0, atol=tolerance)
    assert tanh(torch.tensor([torch.nan], dtype=dtype)).isnan()


def test_tanh_has_the_gradient_of_tanh():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tanh(x * 3), x)


def test_tanh_leaves_its_argument_alone():
    x = torch.ones(5)
    tanh(x)
    assert torch.equal(x, torch.ones(5))


def test_steps_of_sgd_are_those_of_the_notebook(names):
    X, Y = notebook.build_dataset(names[:200], notebook.stoi(names))
    rows = torch.randint(len(X), (30, 8), generator=torch.Generator().manual_seed(1))
    lrs = [0.1] * 20 + [0.01] * 10
    ours = {name: tensor.double() for name, tensor in notebook.parameters(E=3, H=11).items()}
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in ours.items()}
    sgd_steps(**ours, X=X[rows], Y=Y[rows], lrs=lrs)
    for batch, lr in zip(rows, lrs, strict=True):
        gradients = torch.autograd.grad(
            notebook.negative_log_likelihood(theirs, X[batch], Y[batch]), list(theirs.values())
        )
        for parameter, gradient in zip(theirs.values(), gradients, strict=True):
            parameter.data -= lr * gradient
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name].data, rtol=1e-10, atol=1e-12)
