"""The time of an update of all windows, by the length of the list and the block size: writes cost.svg."""

import random
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from peers import seconds

from makemore_pl import MLP, NamesDataModule
from makemore_pl.process import keep_freed_memory
from makemore_pl.windows import count_words

LENGTHS = [300, 1000, 3000, 10_000, 32_033]
BLOCK_SIZES = range(1, 9)
BLUES = matplotlib.colormaps["Blues"]


def update_seconds(words, vocabulary, block_size):
    """The time of one loss and gradient over all windows of the words, the shortest of several, and their contexts."""
    counts = count_words(words, vocabulary, block_size)
    X, Y = counts.contexts, counts[:].float()
    model = MLP(block_size=block_size)

    def update():
        model.zero_grad()
        model.loss(model(X), Y).backward()

    return {"update_s": min(seconds(update) for _ in range(10)), "contexts": len(X)}


def draw(rows):
    """Draws a line for each block size, the darker the larger it is."""
    matplotlib.rcParams |= {"svg.hashsalt": "cost", "svg.fonttype": "none", "font.size": 9}
    figure = Figure((6.4, 4.2))
    axes = figure.add_axes((0.1, 0.12, 0.86, 0.78))
    axes.set_title("Milliseconds for loss and gradient over all windows, one thread", fontsize=10, loc="left")
    for block_size in BLOCK_SIZES:
        times = [1000 * row["update_s"] for row in rows if row["block_size"] == block_size]
        colour = BLUES(0.3 + 0.7 * block_size / BLOCK_SIZES[-1])
        axes.plot(LENGTHS, times, "o-", color=colour, markersize=3.5, label=f"block {block_size}")
    axes.set(xscale="log", yscale="log", xlabel="words in the list")
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(reverse=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("cost.svg"), metadata={"Date": None})


def measure():
    """Measures and draws; returns a row for each length and block size."""
    keep_freed_memory()
    torch.set_num_threads(1)
    data = NamesDataModule()
    words = random.Random(0).sample(data.words, len(data.words))
    rows = [
        {"words": length, "block_size": block_size} | update_seconds(words[:length], data.vocabulary, block_size)
        for length in LENGTHS
        for block_size in BLOCK_SIZES
    ]
    draw(rows)
    return rows


if __name__ == "__main__":
    measure()
