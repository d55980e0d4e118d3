"""Draws the figures of the README from a checkpoint: python docs/figures.py [CHECKPOINT].

Without one, from the best of the run in lightning_logs/version_0.
"""

import sys
from pathlib import Path

import torch

from makemore_pl import MLP, NamesDataModule
from makemore_pl.pictures import figures
from makemore_pl.pictures.board import frequent_contexts


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "lightning_logs/version_0/checkpoints/best.ckpt"
    model = MLP.load_from_checkpoint(path, "cpu", weights_only=True)
    data = NamesDataModule.load_from_checkpoint(path, weights_only=True)
    contexts = frequent_contexts(data.count("val")["val"])
    with torch.no_grad():
        probabilities = torch.softmax(model(contexts), dim=1)
    folder = Path(__file__).parent
    for name, figure in {
        "letters": figures.draw_letters(model.C, model.vocabulary),
        "next": figures.draw_next(probabilities, contexts.tolist(), model.vocabulary),
    }.items():
        figure.savefig(folder / f"{name}.png", pil_kwargs={"optimize": True}, metadata={"Software": None})


if __name__ == "__main__":
    main()
