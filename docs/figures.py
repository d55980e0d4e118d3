"""Draws the figures of README.md and docs/pictures.md from two checkpoints: python docs/figures.py [CHECKPOINT [MAP]].

The map of letters is that of a network with embeddings of two numbers, which need no projection: by default the best of
lightning_logs/version_1, a run of `fit --config hidden`. The other is by default the best of lightning_logs/version_0.
"""

import sys
from pathlib import Path

import torch

from makemore_pl import MLP, NamesDataModule
from makemore_pl.pictures import figures
from makemore_pl.pictures.board import frequent_contexts


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    path, flat = (given.get(n, f"lightning_logs/version_{n}/checkpoints/best.ckpt") for n in range(2))
    letters = MLP.load_from_checkpoint(flat, "cpu", weights_only=True)
    model = MLP.load_from_checkpoint(path, "cpu", weights_only=True)
    data = NamesDataModule.load_from_checkpoint(path, weights_only=True)
    contexts = frequent_contexts(data.count("val")["val"])
    with torch.no_grad():
        probabilities = torch.softmax(model(contexts), dim=1)
    folder = Path(__file__).parent
    for name, figure in {
        "letters": figures.draw_letters(letters.C, letters.vocabulary),
        "next": figures.draw_next(probabilities, contexts.tolist(), model.vocabulary),
    }.items():
        figure.savefig(folder / f"{name}.png", pil_kwargs={"optimize": True}, metadata={"Software": None})


if __name__ == "__main__":
    main()
