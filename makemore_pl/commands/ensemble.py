"""Several networks -> their average, one network with the same five tensors, only larger.

Shapes: T block size (context length), E embedding dimension, H hidden units, V vocabulary size, of each network.
"""

import itertools
from collections.abc import Sequence

import torch

from makemore_pl.model import MLP
from makemore_pl.terminal import brief


@torch.no_grad()
def average(models: Sequence[MLP]) -> MLP:
    """Builds the network whose logits are the mean of the networks' logits: the geometric mean of their probabilities.

    Embeddings and hidden units are concatenated; W1 connects each unit with the embeddings of its own network only.
    The other hyperparameters, such as the learning rate, are those of the first.

    Args:
        models: with the same vocabulary and block size, and any embedding dimensions and hidden sizes.

    Returns:
        C (V, sum E), W1 (T * sum E, sum H), b1 (sum H), W2 (sum H, V), b2 (V).

    Raises:
        ValueError: if the list is empty, vocabularies or block sizes differ, or two networks have the same weights.
    """
    if not models:
        raise ValueError("an average needs one network or more")
    for name in ("vocabulary", "block_size"):
        values = {model.hparams[name] for model in models}
        if len(values) > 1:
            raise ValueError(f"networks of different {name} have no average: {', '.join(map(brief, sorted(values)))}")
    for (i, one), (j, other) in itertools.combinations(enumerate(models, 1), 2):
        if all(map(torch.equal, one.parameters(), other.parameters())):
            raise ValueError(f"checkpoints {i} and {j} of the average have the same weights: name different networks")
    T, E = models[0].block_size, [model.C.shape[1] for model in models]
    H = sum(len(model.b1) for model in models)
    whole = MLP(**{**models[0].hparams, "embedding_dim": sum(E), "hidden_size": H})
    whole.C.copy_(torch.cat([model.C for model in models], dim=1))
    # For each of the T positions, the (E, H) blocks of the networks along the diagonal.
    blocks = [model.W1.view(T, dim, -1).unbind() for model, dim in zip(models, E, strict=True)]
    diagonals = [torch.block_diag(*place) for place in zip(*blocks, strict=True)]  # type: ignore[no-untyped-call]
    whole.W1.copy_(torch.cat(diagonals))
    whole.b1.copy_(torch.cat([model.b1 for model in models]))
    whole.W2.copy_(torch.cat([model.W2 for model in models]) / len(models))
    whole.b2.copy_(torch.stack([model.b2 for model in models]).mean(dim=0))
    return whole
