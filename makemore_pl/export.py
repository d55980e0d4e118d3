"""`export`: a trained network -> one HTML file, an interactive page for any browser, without a server."""

import base64
import json
from importlib import resources

import torch
from lightning.pytorch import Trainer

from makemore_pl.checkpoints import write_whole
from makemore_pl.model import MLP
from makemore_pl.report import say


def export(trainer: Trainer, model: MLP, output: str = "playground.html") -> None:
    """Writes an interactive page of the network to an HTML file."""
    if model.network() != MLP.network():
        raise ValueError(f"the page computes MLP's own network, and {type(model).__name__} has another")
    if trainer.is_global_zero:
        page = as_page(model)
        write_whole(output, page)
        say(f"{output}: {len(page):,} bytes")


def as_page(model: MLP) -> bytes:
    """Fills the weights, the vocabulary and the map of letters into `playground.html`."""
    from makemore_pl.pictures.figures import flatten

    tensors = [tensor.detach().float().cpu() for tensor in model.parameters()]  # C, W1, b1, W2, b2
    points, share = flatten(tensors[0].double())
    weights = torch.cat([tensor.flatten() for tensor in tensors]).numpy().astype("<f4")
    data = {
        "vocabulary": model.vocabulary.characters,
        "block_size": model.block_size,
        "embedding_dim": tensors[0].shape[1],
        "hidden_size": len(tensors[2]),
        "weights": base64.b64encode(weights.tobytes()).decode(),
        "map": [[round(x, 4) for x in point] for point in points.tolist()],
        "map_share": round(share, 4),
    }
    # Inside a script element a `<` could begin its end; json escapes all that is not ASCII.
    text = json.dumps(data).replace("<", "\\u003c")
    template = resources.files("makemore_pl.pictures").joinpath("playground.html").read_text(encoding="utf-8")
    before, after = template.split("{{model}}")
    return f"{before}{text}{after}".encode()
