"""Draws docs/letters.png, the map of letters: python docs/figures.py CHECKPOINT, of a run of `fit --config hidden`."""

import sys
from pathlib import Path

from makemore_pl import MLP
from makemore_pl.pictures.figures import draw_letters


def main() -> None:
    model = MLP.load_from_checkpoint(sys.argv[1], map_location="cpu")
    figure = draw_letters(model.C, model.vocabulary)
    path = Path(__file__).with_name("letters.png")
    figure.savefig(path, pil_kwargs={"optimize": True}, metadata={"Software": None})


if __name__ == "__main__":
    main()
