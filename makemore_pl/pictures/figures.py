"""Numbers -> figures: the map of letters, next-character probabilities, saturation, learning rates.

Needs no Lightning. Shapes: V vocabulary size, E embedding dimension, T block size (context length), H hidden units, R
contexts drawn.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from makemore_pl.pictures.alphabet import LETTERS, is_code, kinds, most_frequent, tokens
from makemore_pl.pictures.plane import flatten, move_apart, uncovered
from makemore_pl.pictures.writing import FONT, find_fonts, widths, write
from makemore_pl.vocabulary import Vocabulary

if TYPE_CHECKING:  # slow to import: the functions that draw import it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CROWD = 100
"""Characters up to which each has a disc on the map; of more, the rarer ones are dots where there is no room."""

COLUMNS = 40
"""Characters in the heat map, at most."""

UNITS = 1000
"""Hidden units in the picture of the tanh layer, at most."""

SATURATED = 0.99
"""Absolute value above which a tanh unit passes on hardly any gradient (makemore part 3)."""

INK, PALE, PAPER, GROUND = "#22262b", "#767c84", "#ffffff", "#f3f5f7"
COLOURS = {"vowel": "#c8434f", "consonant": "#2f6690", "other": "#7d8790", "boundary": INK}
"""For readers who cannot tell the colours apart, the kinds differ in lightness too, and the boundary in shape."""

HEAT = ["#f6f8fa", "#a9c7de", "#2f6690", "#122c45"]
"""Colours of probabilities, from 0 to 1."""


def draw_letters(
    C: Tensor,
    vocabulary: Vocabulary,
    when: str = "",
    near: Tensor | None = None,
    drawn: Sequence[int] | None = None,
) -> "Figure":
    """Draws the map of letters (makemore part 2: "visualize dimensions 0 and 1 of the embedding matrix C").

    Args:
        C: (V, E) embeddings, finite.
        vocabulary: of the V tokens.
        when: text at the right of the title, such as the step.
        near: (N, 2), as for `flatten`.
        drawn: the N tokens to draw, the most frequent first; if omitted, the first `LETTERS` characters.
    """
    title = "The map of letters"
    if len(vocabulary) > LETTERS + 1:
        title += f": the {'first' if drawn is None else 'most frequent'} {LETTERS} of {len(vocabulary) - 1:,}"
    drawn = most_frequent(vocabulary) if drawn is None else drawn
    points, share = flatten(C.detach().cpu()[drawn], near)
    N, E = len(drawn), C.shape[1]
    how = f"C, {E} dimension{'s' * (E > 1)}"
    if E > 2:
        how += f" in the plane of the first two principal components (PCA): {share:.0%} of the variance"
    width, height, top = 640, 560, 78
    figure, axes = _page(width, height, title, how, when)
    axes.fill_between([14, width - 14], top, height - 14, color=GROUND, linewidth=0)

    crowded = N > CROWD + 1
    disc = 20.0 if crowded else min(120 / N**0.5, 23.0)  # diameter
    xy = points.double().numpy()
    low, high = xy.min(axis=0), xy.max(axis=0)
    room = np.array([width - 28, height - 14 - top]) - 2 * disc
    scale = (room / np.maximum(high - low, 1e-9)).min()  # one for both directions, which keeps distances comparable
    middle = np.array([width / 2, (top + height - 14) / 2])
    xy = middle + (xy - (low + high) / 2) * [scale, -scale]
    if not crowded:
        xy = move_apart(xy, disc)

    labels, everything = tokens(vocabulary), kinds(vocabulary)
    names, of_kind = [labels[i] for i in drawn], np.array([everything[i] for i in drawn])
    families = find_fonts(vocabulary.characters).families
    coded = np.array([is_code(name) for name in names])  # a dot, and its label below
    below, small = xy + [0, 9], 6.5
    box = np.full((N, 2), disc)
    box[coded] = np.stack([widths(names, small) + 4, np.full(N, 1.4 * small)], axis=1)[coded]
    readable = uncovered(np.where(coded[:, None], below, xy), box, np.full(N, False) if crowded else ~coded)

    large, outside = readable & ~coded, np.flatnonzero(readable & coded)
    _discs(axes, xy[~large], 6, list(of_kind[~large]), alpha=0.4)
    _discs(axes, xy[large], disc, list(of_kind[large]))
    inside = np.flatnonzero(large)
    inks = [INK if of_kind[i] == "boundary" else PAPER for i in inside]
    texts = [names[i] for i in inside]
    size = 0.5 * disc if crowded else 0.6 * disc
    write(axes, texts, xy[inside], size, inks, families=families, weight="bold", anchor="middle")
    write(axes, [names[i] for i in outside], below[outside], small, [COLOURS[of_kind[i]] for i in outside])
    if not readable.all():
        write(axes, ["dots without a label: no room for it"], np.array([[14, 61]]), 8.5, [PALE], anchor="left")
    legend = [name for name in COLOURS if name in of_kind]
    labels = [name if name in ("boundary", "other") else f"{name}s" for name in legend]
    room = 28 + 7 * np.array([len(label) for label in labels])  # for a disc and its label
    x = width - 14 - np.cumsum(room[::-1])[::-1]
    _discs(axes, np.stack([x + 17, np.full(len(x), 61.0)], axis=1), 10, legend)
    write(axes, labels, np.stack([x + 28, np.full(len(x), 61.0)], axis=1), 8.5, [PALE] * len(x), anchor="left")
    return figure


def draw_next(
    probabilities: Tensor, contexts: Sequence[Sequence[int]], vocabulary: Vocabulary, when: str = ""
) -> "Figure":
    """Draws next-character probabilities after a few contexts as a heat map; those from 4.5 % are also written.

    Args:
        probabilities: (R, V), each row sums to 1; of large alphabets the `COLUMNS` likeliest characters are drawn.
        contexts: R of them, T ids each.
        vocabulary: of the V tokens.
        when: text at the right of the title, such as the step.
    """
    from matplotlib.colors import LinearSegmentedColormap

    V, R = len(vocabulary), len(contexts)
    columns = probabilities.amax(dim=0).topk(min(V, COLUMNS)).indices.sort().values.tolist()
    shares = probabilities.detach().cpu()[:, columns].double().numpy()
    names, of_kind = tokens(vocabulary), kinds(vocabulary)
    families = find_fonts(vocabulary.characters).families
    rows = [_row([names[i] for i in row]) for row in contexts]
    mono = f"{FONT} Mono", *families
    cell, left, top = 27, 28 + max(7.6 * max(map(len, rows)), *widths(rows, 9.0, mono)), 88
    few = f" (the {len(columns)} likeliest of {V:,})" if len(columns) < V else ""
    width = max(left + cell * len(columns) + 12, 420)
    height = top + cell * R + 12
    figure, axes = _page(width, height, "What comes next", f"probability in %, after each context{few}", when)

    x, y = left + cell * np.arange(len(columns) + 1.0), top + cell * np.arange(R + 1.0)
    # Always from 0 to 1, so that pictures compare; the square root tells small shares apart.
    heat = LinearSegmentedColormap.from_list("heat", HEAT)
    axes.pcolormesh(x, y, np.sqrt(shares), cmap=heat, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1.1)
    x, y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
    for long in (False, True):  # a label that is too wide for its column is drawn upright
        some = [place for place, i in enumerate(columns) if is_code(names[i]) == long]
        labels, inks = [names[columns[place]] for place in some], [COLOURS[of_kind[columns[place]]] for place in some]
        above = np.stack([x[some], np.full(len(some), top - 11.0)], axis=1)
        anchor, size = ("upright", 6.0) if long else ("centre", 9.0)
        write(axes, labels, above, size, inks, families=families, weight="bold", anchor=anchor)
    before = np.stack([np.full(R, left - 9.0), y], axis=1)
    write(axes, rows, before, 9.0, [INK] * R, families=mono, anchor="right")
    row, column = np.nonzero(shares >= 0.045)
    said = shares[row, column]
    inks = [PAPER if share > 0.25 else INK for share in said]
    write(axes, [f"{100 * share:.0f}" for share in said], np.stack([x[column], y[row]], axis=1), 7.0, inks)
    return figure


def _row(labels: list[str]) -> str:
    """Joins the labels of a context; a mark is written on the character before it, where there is one."""
    if any(map(is_code, labels)):
        return " ".join(labels)
    return "".join(y if x == "." else y[-1] for x, y in zip([".", *labels], labels, strict=False))


def draw_saturated(h: Tensor, when: str = "") -> "Figure":
    """Draws which tanh units are saturated after which contexts (makemore part 3): a dark column is a dead unit.

    Args:
        h: (R, H) activations; of large layers the first `UNITS` are drawn.
        when: text at the right of the title, such as the step.
    """
    from matplotlib.colors import ListedColormap

    R, H = len(h), min(h.shape[1], UNITS)
    saturated = (h.detach().cpu()[:, :H].abs() > SATURATED).numpy()
    wide, high = (min(max(room // number, 1), 30) for room, number in ((560, H), (400, R)))  # of a cell, in pixels
    left, top = 36, 78
    width, height = max(left + wide * H + 14, 420), top + high * R + 34
    few = f", the first {H:,} of {h.shape[1]:,} units" if h.shape[1] > H else ""
    subtitle = f"{saturated.mean():.0%} of the tanh layer; dark columns hardly learn{few}"
    figure, axes = _page(width, height, "Saturated units", subtitle, when)
    colours, place = [HEAT[0], HEAT[2]], (left, left + wide * H, top + high * R, top)
    two = ListedColormap(colours)
    axes.imshow(saturated, two, aspect="auto", vmin=0, vmax=1, extent=place, interpolation="nearest")
    legend = np.array([[width - 190.0, 61], [width - 88.0, 61]])
    axes.scatter(legend[:, 0], legend[:, 1], s=50, marker="s", c=colours, edgecolors=HEAT[2], linewidths=0.8)
    labels = [f"|h| up to {SATURATED}", f"above {SATURATED}"]
    write(axes, labels, legend + [10, 0], 8.5, [PALE] * 2, anchor="left")
    below, beside = [left, top + high * R + 14.0], [22.0, top + high * R / 2]
    write(axes, [f"hidden units, 1 to {H:,}"], np.array([below]), 8.5, [PALE], anchor="left")
    write(axes, [f"contexts, 1 to {R:,}"], np.array([beside]), 8.5, [PALE], anchor="upright")
    return figure


def draw_marks(vocabulary: Vocabulary, drawn: Sequence[int], size: int = 32) -> np.ndarray:
    """Draws N tokens as on the map of letters, for TensorBoard's projector.

    Returns:
        (N, size, size, 3) uint8.
    """
    N, side = len(drawn), math.ceil(len(drawn) ** 0.5)
    figure, axes = _page(size * side, size * side, "", "", "")
    place = np.arange(N)
    xy = size * (np.stack([place % side, place // side], axis=1) + 0.5)
    everything, labels = kinds(vocabulary), tokens(vocabulary)
    of_kind, names = [everything[i] for i in drawn], [labels[i] for i in drawn]
    families = find_fonts(vocabulary.characters).families
    _discs(axes, xy, 0.9 * size, of_kind)
    inks = [INK if kind == "boundary" else PAPER for kind in of_kind]
    for coded, scale in ((False, 0.5), (True, 0.14)):
        own = [i for i in range(N) if is_code(names[i]) == coded]
        texts, colours = [names[i] for i in own], [inks[i] for i in own]
        write(axes, texts, xy[own], scale * size, colours, families=families, anchor="middle")
    cells = rasterise(figure).reshape(side, size, side, size, 3)
    return cells.transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3)[:N]


def draw_learning_rates(
    lrs: Sequence[float], losses: Sequence[float], lr: float, low: float, high: float, share: float = 1
) -> "Figure":
    """Draws the loss over the logarithm of the learning rate (makemore part 2, "finding a good initial learning rate").

    Args:
        lrs: N learning rates.
        losses: N losses; one that is not finite leaves a gap.
        lr: the suggested learning rate.
        low: the lowest good one.
        high: the highest good one.
        share: of the peak of the schedule, which `lr` is.
    """
    from matplotlib.figure import Figure

    figure = Figure((6.4, 4.2), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="log10 of the learning rate", ylabel="loss of the step")
    axes.plot(np.log10(lrs), losses, color=COLOURS["consonant"], linewidth=0.8)
    axes.axvspan(np.log10(low), np.log10(high), color=COLOURS["consonant"], alpha=0.12, linewidth=0)
    label = f"take {lr:.2g} = 10^{np.log10(lr):.1f}"
    if share < 1:
        label = f"{lr:.2g} = 10^{np.log10(lr):.1f} at every step: take {lr / share:.2g} as the peak of the schedule"
    axes.axvline(np.log10(lr), color=COLOURS["vowel"])
    axes.set_title(label, loc="left", fontsize=10, color=COLOURS["vowel"])
    finite = np.array([loss for loss in losses if np.isfinite(loss)])
    # The last steps may diverge, to hundreds: the axis ends above the loss from which the search began to fall.
    axes.set_ylim(0.9 * finite.min(), 1.1 * finite[: finite.argmin() + 1].max())
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _page(width: float, height: float, title: str, subtitle: str, when: str) -> "tuple[Figure, Axes]":
    """Makes a figure with invisible axes in pixels, from the top left corner, and writes its title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / 100, height / 100), dpi=100, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    write(axes, [title], np.array([[14, 20]]), 11.5, [INK], weight="bold", anchor="left")
    write(axes, [subtitle], np.array([[14, 41]]), 8.5, [PALE], anchor="left")
    write(axes, [when], np.array([[width - 14, 20]]), 9.5, [PALE], anchor="right")
    return figure, axes


def _discs(axes: "Axes", xy: np.ndarray, diameter: float, of_kind: list[str], alpha: float = 1) -> None:
    """Draws a disc for each of N kinds at (N, 2) pixels, a ring for the boundary."""
    hollow, colours = [name == "boundary" for name in of_kind], [COLOURS[name] for name in of_kind]
    faces = [PAPER if empty else colour for empty, colour in zip(hollow, colours, strict=True)]
    edges = [colour if empty else PAPER for empty, colour in zip(hollow, colours, strict=True)]
    axes.scatter(xy[:, 0], xy[:, 1], s=(0.72 * diameter) ** 2, c=faces, edgecolors=edges, linewidths=0.8, alpha=alpha)


def rasterise(figure: "Figure") -> np.ndarray:
    """Renders a figure of this module.

    Returns:
        (height, width, 3) uint8, red, green and blue.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]
