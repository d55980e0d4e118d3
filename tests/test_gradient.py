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


def test_updates_are_those_of_the_notebook(names):
    X, Y = notebook.build_dataset(names[:200], notebook.stoi(names))
    rows = torch.randint(len(X), (30, 8), generator=torch.Generator().manual_seed(1))
    lrs = [0.1] * 20 + [0.01] * 10
    theirs = {name: tensor.double() for name, tensor in notebook.parameters(E=3, H=11).items()}
    ours = {name: tensor.clone() for name, tensor in theirs.items()}
    mean, losses = sgd_steps(**ours, X=X[rows], Y=Y[rows], lrs=lrs), []
    for batch, lr in zip(rows, lrs, strict=True):
        for parameter in theirs.values():
            parameter.requires_grad_()
        loss = notebook.negative_log_likelihood(theirs, X[batch], Y[batch])
        gradients = torch.autograd.grad(loss, list(theirs.values()))
        pairs = zip(theirs.items(), gradients, strict=True)
        theirs = {name: (parameter - lr * gradient).detach() for (name, parameter), gradient in pairs}
        losses.append(loss.item())
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-11)
    assert mean == pytest.approx(sum(losses) / 30, rel=1e-9)


def test_large_logits_have_a_finite_loss(names):
    """Some are above 88, whose exponentials 32 bits cannot hold."""
    X, Y = notebook.build_dataset(names[:200], notebook.stoi(names))
    weights = notebook.parameters(E=3, H=11)
    weights["W2"] *= 10
    loss = notebook.negative_log_likelihood(weights, X, Y).item()
    assert sgd_steps(**weights, X=X[None], Y=Y[None], lrs=[0.0]) == pytest.approx(loss, rel=1e-5)
