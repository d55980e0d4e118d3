"""Plots the time of a full step against the length of the list and the block size: cost.svg and JSON on stdout."""

import json
import random
import time
from pathlib import Path

import matplotlib
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from peers import seconds

from makemore_pl import MLP, NamesDataModule
from makemore_pl.commands.process import keep_freed_memory
from makemore_pl.pictures.figures import HEAT, INK, PALE
from makemore_pl.pictures.writing import FONT
from makemore_pl.windows import count_words

LENGTHS = [300, 1000, 3000, 10_000, 32_033]
BLOCK_SIZES = range(1, 9)


def step_seconds(words, vocabulary, block_size):
    """The time of one exact loss and gradient over all windows of the words, and their number of contexts.

    The shortest of half a second, at least five: the steps of small blocks take less than a busy machine adds now and
    then, and the first ones of a process are slow.
    """
    counts = count_words(words, vocabulary, block_size)
    X, Y = counts.contexts, counts[:].float()
    model = MLP(block_size=block_size)

    def step():
        model.zero_grad()
        torch.autograd.backward(model.loss(model(X), Y))

    took, end = [], time.perf_counter() + 0.5
    while len(took) < 5 or time.perf_counter() < end:
        took.append(seconds(step))
    return {"step_s": min(took), "contexts": len(X)}


def draw(rows):
    """Draws a line for each block size, the darker the larger it is, in the style of the other pictures."""
    matplotlib.rcParams |= {"font.family": FONT, "svg.hashsalt": "cost", "axes.edgecolor": PALE, "text.color": INK}
    shade = LinearSegmentedColormap.from_list("heat", HEAT)
    figure = Figure((6.4, 4.2))
    axes = figure.add_axes((0.1, 0.12, 0.76, 0.7))
    left = axes.get_position().x0 - 0.08
    figure.text(left, 0.94, "The cost of a step over all windows", fontsize=11.5, weight="bold")
    how = "milliseconds for loss and gradient, counted, on one thread (E = 10, H = 200)"
    figure.text(left, 0.885, how, fontsize=8.5, color=PALE)
    lowest = 0.0
    for block_size in BLOCK_SIZES:
        own = [row for row in rows if row["block_size"] == block_size]
        times = [1000 * row["step_s"] for row in own]
        colour = shade(0.4 + 0.6 * (block_size - 1) / (len(BLOCK_SIZES) - 1))
        axes.plot([row["words"] for row in own], times, "o-", color=colour, markersize=3.5, linewidth=1.4)
        lowest = max(times[-1], 1.36 * lowest)  # labels do not cover each other
        axes.text(1.15 * LENGTHS[-1], lowest, f"block {block_size}", color=colour, fontsize=8.5, va="center")
    axes.set(xscale="log", yscale="log", xlabel="words in the list")
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.label.set(color=PALE, fontsize=8.5)
    axes.tick_params(which="both", colors=PALE, labelsize=8.5)
    axes.minorticks_off()
    axes.grid(color="#e6e9ec", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("cost.svg"), metadata={"Date": None})


def main():
    keep_freed_memory()
    torch.set_num_threads(1)  # two would wait for each other on the small blocks, and on a busy machine on all
    data = NamesDataModule()
    words = random.Random(0).sample(data.words, len(data.words))
    rows = [
        {"words": length, "block_size": block_size} | step_seconds(words[:length], data.vocabulary, block_size)
        for length in LENGTHS
        for block_size in BLOCK_SIZES
    ]
    draw(rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
