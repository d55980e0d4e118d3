"""Numbers -> figures: the map of letters, next-character probabilities, saturation, learning rates.

Needs no Lightning. Shapes: V vocabulary size, E embedding dimension, T block size (context length), H hidden units, R
contexts drawn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from makemore_pl.pictures.alphabet import FONT, find_fonts, kind, most_frequent, tokens
from makemore_pl.vocabulary import Vocabulary

if TYPE_CHECKING:  # slow to import: the functions that draw import it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 40  # characters in the heat map, at most
COLOURS = {"vowel": "#c8434f", "consonant": "#2f6690", "other": "#7d8790", "boundary": "#22262b"}


def flatten(C: Tensor, near: Tensor | None = None) -> tuple[Tensor, float]:
    """Projects embeddings C (N, E) to two dimensions: by principal components if they have more, else unchanged.

    The signs and the rotation of principal components are arbitrary, so pictures of one run would jump. The points are
    rotated and mirrored to lie nearest to those of the previous picture (N, 2).

    Returns:
        (N, 2), and their share of the variance.
    """
    if C.shape[1] <= 2:
        return torch.cat([C, C.new_zeros(len(C), 2 - C.shape[1])], dim=1), 1.0
    U, S, _ = torch.linalg.svd(C - C.mean(dim=0), full_matrices=False)
    points = U[:, :2] * S[:2]
    if near is None:
        points *= points.gather(0, points.abs().argmax(dim=0, keepdim=True)).sign()  # the furthest letter is positive
    else:
        P, _, Q = torch.linalg.svd(points.T @ (near - near.mean(dim=0)))  # orthogonal Procrustes
        points = points @ P @ Q
    variance = S.square()
    return points, float(variance[:2].sum() / variance.sum()) if variance.any() else 1.0


def draw_letters(
    C: Tensor, vocabulary: Vocabulary, when: str = "", near: Tensor | None = None, drawn: Sequence[int] | None = None
) -> "Figure":
    """Draws the map of letters (makemore part 2: "visualize dimensions 0 and 1 of the embedding matrix C").

    Of many tokens only the N in `drawn` are, turned to be `near` their points (N, 2) in the previous picture.
    """
    drawn = most_frequent(vocabulary) if drawn is None else drawn
    points, share = flatten(C.detach().float().cpu()[drawn], near)
    labels, (families, _) = tokens(vocabulary), find_fonts(vocabulary.characters)
    kinds = ["boundary", *map(kind, vocabulary.characters)]
    title = "The map of letters"
    if len(drawn) < len(vocabulary):
        title += f": {len(drawn) - 1:,} of {len(vocabulary) - 1:,}"
    figure, axes = _figure(5.7, 5.4, title, when)
    axes.set(xticks=[], yticks=[], xlabel="C[:, 0]", ylabel="C[:, 1]")
    if C.shape[1] > 2:
        how = f"the first two principal components of {C.shape[1]} dimensions: {share:.0%} of the variance"
        axes.set(xlabel=how, ylabel="")
    axes.update_datalim(points.numpy())
    axes.set_aspect("equal", "datalim")  # keeps distances comparable
    axes.margins(0.08)
    axes.autoscale_view()
    figure.draw_without_rendering()  # lays the axes out
    pixels, written = axes.transData.transform(points.numpy()), list[int]()
    for n, i in enumerate(drawn):
        size = 6 if len(labels[i]) > 2 else 12  # a code point needs more room than a character
        x, y = points[n].tolist()
        room = 0.8 * size * len(labels[i]), size  # in pixels
        if any((np.abs(pixels[n] - pixels[other]) < room).all() for other in written):
            axes.scatter(x, y, s=6, color=COLOURS[kinds[i]])  # its label would cover another
            continue
        written.append(n)
        text = axes.text(x, y, labels[i], size=size, color=COLOURS[kinds[i]], ha="center", va="center")
        text.set_fontfamily(families)
    axes.scatter(points[0, 0], points[0, 1], s=120, facecolors="none", edgecolors=COLOURS["boundary"])
    for row, name in enumerate(name for name in COLOURS if name in {kinds[i] for i in drawn}):  # the legend
        axes.text(0.015, 0.965 - 0.03 * row, name, size=9, color=COLOURS[name], transform=axes.transAxes)
    return figure


def draw_next(
    probabilities: Tensor, contexts: Sequence[Sequence[int]], vocabulary: Vocabulary, when: str = ""
) -> "Figure":
    """Draws probabilities (R, V) of the next character after R contexts of T ids; those from 10 % are also written."""
    columns = probabilities.amax(dim=0).topk(min(len(vocabulary), COLUMNS)).indices.sort().values.tolist()
    shares = probabilities.detach().cpu()[:, columns].numpy()
    labels, (families, _) = tokens(vocabulary), find_fonts(vocabulary.characters)
    names, rows = [labels[i] for i in columns], ["".join(labels[i] for i in context) for context in contexts]
    title = "What comes next, in %"
    if len(columns) < len(vocabulary):
        title += f": the {len(columns)} likeliest of {len(vocabulary):,}"
    figure, axes = _figure(1 + 0.26 * max(12, len(names)), 0.8 + 0.26 * len(rows), title, when)
    # Always from 0 to 1, so that pictures compare; the square root tells small shares apart.
    axes.imshow(np.sqrt(shares), "Blues", vmin=0, vmax=1, aspect="auto")
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.set_xticks(range(len(names)), names, family=families, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(len(rows)), rows, family=[f"{FONT} Mono", *families])
    for row, column in np.argwhere(shares >= 0.1).tolist():
        share = shares[row, column]
        colour = "white" if share > 0.25 else "black"
        axes.text(column, row, f"{100 * share:.0f}", size=8, color=colour, ha="center", va="center")
    return figure


def saturated(h: Tensor) -> np.ndarray:
    """Returns an image (R, H), white where a tanh unit h (R, H) is saturated: a white column is a dead unit.

    Above 0.99 a unit passes on hardly any gradient (makemore part 3).
    """
    return np.where(h.detach().cpu().abs() > 0.99, 255, 0).astype(np.uint8)


def draw_learning_rates(lrs: Sequence[float], losses: Sequence[float], lr: float, low: float, high: float) -> "Figure":
    """Draws the loss over the logarithm of the learning rate (makemore part 2, "finding a good initial learning rate").

    The suggested rate is a line, the good ones from low to high are a band.
    """
    figure, axes = _figure(6.2, 4.2, f"take {lr:.2g}")
    axes.semilogx(lrs, losses, color=COLOURS["consonant"], linewidth=0.8)
    axes.axvspan(low, high, color=COLOURS["consonant"], alpha=0.15, linewidth=0)
    axes.axvline(lr, color=COLOURS["vowel"])
    axes.set(xlabel="learning rate", ylabel="loss of the step")
    finite = np.array([loss for loss in losses if np.isfinite(loss)])
    # The last steps may diverge, to hundreds: the axis ends above the loss from which the search began to fall.
    axes.set_ylim(0.9 * finite.min(), 1.1 * finite[: finite.argmin() + 1].max())
    return figure


def _figure(width: float, height: float, title: str, when: str = "") -> "tuple[Figure, Axes]":
    """Makes a figure of some inches and its axes, without pyplot, which would keep it."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", size=10)
    axes.set_title(when, loc="right", size=9)
    return figure, axes
