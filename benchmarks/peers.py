"""The peers of the benchmarks: the notebook's code and typical Lightning code, each written plainly.

Run as a script, it is the notebook from launch to exit: `python peers.py STEPS`. The functions `time_...` are what
`run.py` calls, in a process of the peers' own, on one thread.
"""

import logging
import random
import sys
import time
import warnings
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent


class Timed:
    """Has a LightningModule measure its training loop: updates, validations, logs and checkpoints, without set-up."""

    def on_train_start(self):
        self.started = time.perf_counter()

    def on_train_end(self):
        self.seconds = time.perf_counter() - self.started


def seconds(work, *arguments, times=1):
    """The mean time of consecutive calls."""
    start = time.perf_counter()
    for _ in range(times):
        work(*arguments)
    return (time.perf_counter() - start) / times


def read():
    words = (ROOT / "names.txt").read_text().splitlines()
    random.Random(42).shuffle(words)
    n1, n2 = int(0.8 * len(words)), int(0.9 * len(words))
    return words[:n1], words[n1:n2], words[n2:]


def build_dataset(words, block_size=3):
    stoi = {character: i + 1 for i, character in enumerate("abcdefghijklmnopqrstuvwxyz")} | {".": 0}
    X, Y = [], []
    for word in words:
        context = [0] * block_size
        for character in word + ".":
            i = stoi[character]
            X.append(context)
            Y.append(i)
            context = context[1:] + [i]
    return torch.tensor(X), torch.tensor(Y)


@cache
def windows(device="cpu"):
    return [tuple(tensor.to(device) for tensor in build_dataset(split)) for split in read()]


def parameters(device="cpu"):
    g = torch.Generator().manual_seed(2147483647)
    shapes = [(27, 10), (30, 200), (200,), (200, 27), (27,)]
    return [torch.randn(shape, generator=g).to(device).requires_grad_() for shape in shapes]


def loss(all_parameters, X, Y):
    """The lecture's forward pass."""
    C, W1, b1, W2, b2 = all_parameters
    emb = C[X]
    h = torch.tanh(emb.view(-1, 30) @ W1 + b1)
    logits = h @ W2 + b2
    return F.cross_entropy(logits, Y)


def loss_and_gradient(all_parameters, X, Y):
    """The same and the backward pass, as the seed run does on all windows at once."""
    for p in all_parameters:
        p.grad = None
    loss(all_parameters, X, Y).backward()


def loop(Xtr, Ytr, steps):
    """The lecture's training loop; returns the parameters."""
    all_parameters = parameters(Xtr.device)
    for i in range(steps):
        ix = torch.randint(0, Xtr.shape[0], (32,), device=Xtr.device)
        loss_and_gradient(all_parameters, Xtr[ix], Ytr[ix])
        lr = 0.1 if i < steps / 2 else 0.01
        for p in all_parameters:
            p.data += -lr * p.grad
    return all_parameters


def sample(all_parameters, names):
    """The lecture's sampling, a character at a time."""
    C, W1, b1, W2, b2 = all_parameters
    itos = "." + "abcdefghijklmnopqrstuvwxyz"
    g = torch.Generator().manual_seed(2147483647 + 10)
    words = []
    for _ in range(names):
        out, context = [], [0] * 3
        while True:
            emb = C[torch.tensor([context])]
            h = torch.tanh(emb.view(1, -1) @ W1 + b1)
            probs = F.softmax(h @ W2 + b2, dim=1)
            ix = torch.multinomial(probs, num_samples=1, generator=g).item()
            context = context[1:] + [ix]
            out.append(ix)
            if ix == 0:
                break
        words.append("".join(itos[i] for i in out))
    return words


def usual_lightning(X, Y, steps, folder):
    """A Trainer, a DataLoader over a TensorDataset, `self.log` in each step; returns the module."""
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    class Usual(Timed, LightningModule):
        def __init__(self):
            super().__init__()
            self.C, self.W1, self.b1, self.W2, self.b2 = map(torch.nn.Parameter, parameters())

        def training_step(self, batch, batch_idx):
            nll = loss(self.parameters(), *batch)
            self.log("train/loss", nll)
            return nll

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = Trainer(max_steps=steps, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)
    module = Usual()
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=32, shuffle=True))
    return module


def time_loop(steps):
    return seconds(loop, *windows()[0], steps)


def time_loss_and_gradient():
    return seconds(loss_and_gradient, parameters(), *windows()[0])


def time_loss(times=10):
    return sum(seconds(loss, parameters(), *split, times=times) for split in windows()[1:])


def time_build_dataset():
    return seconds(build_dataset, read()[0])


def time_sample(state, names):
    return seconds(sample, [state[name] for name in ("C", "W1", "b1", "W2", "b2")], names)


def time_usual_lightning(steps, folder):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return usual_lightning(*windows()[0], steps, folder).seconds


def main():
    """The notebook as a script: reads, trains, evaluates, samples; prints the seconds of its loop."""
    torch.set_num_threads(1)
    train, val, _ = read()
    Xtr, Ytr = build_dataset(train)
    start = time.perf_counter()
    trained = loop(Xtr, Ytr, int(sys.argv[1]))
    print(time.perf_counter() - start)
    with torch.no_grad():
        loss(trained, *build_dataset(val))
    sample(trained, 20)


if __name__ == "__main__":
    main()
