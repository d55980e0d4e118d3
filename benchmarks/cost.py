"""Plots the time of a full step against the length of the list and the block size: cost.svg and JSON on stdout."""

import json
import random
import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure
from peers import seconds

from makemore_pl import MLP, NamesDataModule
from makemore_pl.commands.process import keep_freed_memory
from makemore_pl.windows import count_words

LENGTHS = [300, 1000, 3000, 10_000, 32_033]
BLOCK_SIZES = range(1, 9)


def step_seconds(words, vocabulary, block_size):
    """The time of one exact loss and gradient over all windows of the words, and their number of contexts."""
    X, Y = count_words(words, vocabulary, block_size)
    model = MLP(block_size=block_size)

    def step():
        model.zero_grad()
        torch.autograd.backward(model.loss(model(X), Y))

    step()
    took = statistics.median(seconds(step) for _ in range(3))
    return {"step_s": took, "contexts": len(X)}


def main():
    keep_freed_memory()
    data = NamesDataModule()
    words = random.Random(0).sample(data.words, len(data.words))
    rows = [
        {"words": length, "block_size": block_size} | step_seconds(words[:length], data.vocabulary, block_size)
        for length in LENGTHS
        for block_size in BLOCK_SIZES
    ]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for block_size in BLOCK_SIZES:
        own = [row for row in rows if row["block_size"] == block_size]
        axes.plot([row["words"] for row in own], [1000 * row["step_s"] for row in own], "o-", label=str(block_size))
    axes.set(xscale="log", yscale="log", xlabel="words in the list", ylabel="milliseconds per full step")
    axes.set_title("Exact loss and gradient over all windows, counted (E=10, H=200)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(title="block size", ncols=2)
    figure.savefig(Path(__file__).with_name("cost.svg"))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
