"""The notebook's formulas, written plainly and slowly: what the package is held against. Imports none of it."""

import random

import torch


def build_dataset(words, stoi, block_size=3):
    X, Y = [], []
    for word in words:
        context = [0] * block_size
        for character in [*word, None]:
            i = 0 if character is None else stoi[character]
            X.append(context)
            Y.append(i)
            context = context[1:] + [i]
    return torch.tensor(X), torch.tensor(Y)


def stoi(words):
    return {character: i for i, character in enumerate(sorted(set("".join(words))), start=1)}


def split(words):
    words = list(words)
    random.Random(42).shuffle(words)
    n1, n2 = int(0.8 * len(words)), int(0.9 * len(words))
    return words[:n1], words[n1:n2], words[n2:]


def parameters(V=27, T=3, E=2, H=100):
    g = torch.Generator().manual_seed(2147483647)
    C = torch.randn((V, E), generator=g)
    W1 = torch.randn((T * E, H), generator=g)
    b1 = torch.randn(H, generator=g)
    W2 = torch.randn((H, V), generator=g)
    b2 = torch.randn(V, generator=g)
    return {"C": C, "W1": W1, "b1": b1, "W2": W2, "b2": b2}


def probabilities(parameters, X):
    """The network by hand, in fp64: exponentiate the logits and normalise."""
    C, W1, b1, W2, b2 = (parameters[name].double() for name in ("C", "W1", "b1", "W2", "b2"))
    emb = C[X]
    h = torch.tanh(emb.view(emb.shape[0], -1) @ W1 + b1)
    logits = h @ W2 + b2
    counts = logits.exp()
    return counts / counts.sum(1, keepdims=True)


def negative_log_likelihood(parameters, X, Y):
    """The loss by hand: the logarithm of the right character's share."""
    return -probabilities(parameters, X)[torch.arange(len(Y)), Y].log().mean()
