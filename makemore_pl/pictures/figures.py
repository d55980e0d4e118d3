"""Numbers -> figures: the map of letters, next-character probabilities, saturation, learning rates.

Needs no Lightning. Shapes: V vocabulary size, E embedding dimension, T block size (context length), H hidden units, R
contexts drawn.

Over 300 lines: texts are drawn as outlines, since matplotlib's own would be half of the cost of all pictures (LOG.md).
"""

import math
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from makemore_pl.vocabulary import BOUNDARY, Vocabulary

if TYPE_CHECKING:  # slow to import: the functions that draw import it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path

LETTERS = 500
"""Characters on the map, at most: more would hide each other."""

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

FONT = "DejaVu Sans"
"""Shipped with matplotlib, so figures look the same on every machine."""


ALPHABETS = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN")
"""The first words of the Unicode names of letters that are vowels or consonants."""

VOWELS = "aeiouæœøı" + "αεηιουω" + "аеиоуыэюяєі" + "աեէըիոօ" + "აეიოუ"  # noqa: RUF001 (they look alike)
"""In these alphabets, in lower case, without accents."""


def kind(character: str) -> str:
    """Classifies a character as `vowel`, `consonant` (including y), or `other`: of another script, or no letter."""
    lower = character.lower()
    base = unicodedata.normalize("NFD", lower)[0]
    if not base.isalpha() or not unicodedata.name(base, "").startswith(ALPHABETS) or lower in "ьъ":
        return "other"
    return "vowel" if base in VOWELS and lower not in "йў" else "consonant"


def kinds(vocabulary: Vocabulary) -> list[str]:
    """The kinds of all V tokens, of which the first is the `boundary`."""
    return ["boundary", *map(kind, vocabulary.characters)]


def visible(character: str) -> str:
    """A printable form of a character: a space as `␣`, an invisible one as its code point, such as `U+200D`."""
    if character == " ":
        return "␣"
    return character if character.isprintable() and not unicodedata.combining(character) else f"U+{ord(character):04X}"


def tokens(vocabulary: Vocabulary) -> list[str]:
    """The labels of the V tokens in a figure; a character missing from the font as its code point, such as `U+540D`."""
    font = _font()
    labels = [visible(character) for character in vocabulary.characters]
    return ["."] + [x if len(x) > 1 or ord(x) in font else f"U+{ord(x):04X}" for x in labels]


@cache
def _font() -> frozenset[int]:
    """The code points present in all three faces of the font that the figures use."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    sans, mono = [FONT], [f"{FONT} Mono"]
    faces = [FontProperties(family=sans), FontProperties(family=sans, weight="bold"), FontProperties(family=mono)]
    return frozenset.intersection(*(frozenset(get_font(findfont(face)).get_charmap()) for face in faces))


def flatten(C: Tensor, near: Tensor | None = None) -> tuple[Tensor, float]:
    """Projects embeddings to two dimensions: by principal components if they have more, else unchanged.

    Args:
        C: (V, E).
        near: (V, 2), the points of the previous picture. The signs and the rotation of principal components are
            arbitrary, so pictures of one run would jump; the points are rotated and mirrored to lie nearest to these.

    Returns:
        (V, 2), and their share of the variance.
    """
    if C.shape[1] <= 2:
        return torch.cat([C, C.new_zeros(len(C), 2 - C.shape[1])], dim=1), 1.0
    centred = C - C.mean(dim=0)
    U, S, _ = torch.linalg.svd(centred, full_matrices=False)
    points = U[:, :2] * S[:2]
    if near is None:
        points *= points.gather(0, points.abs().argmax(dim=0, keepdim=True)).sign()  # the furthest letter is positive
    else:
        P, _, Q = torch.linalg.svd(points.T @ (near - near.mean(dim=0)))  # orthogonal Procrustes
        points = points @ P @ Q
    variance = S.square()
    return points, float(variance[:2].sum() / variance.sum()) if variance.any() else 1.0


def draw_letters(C: Tensor, vocabulary: Vocabulary, when: str = "", near: Tensor | None = None) -> "Figure":
    """Draws the map of letters (makemore part 2: "visualize dimensions 0 and 1 of the embedding matrix C").

    Args:
        C: (V, E) embeddings, finite; of large alphabets the first `LETTERS` are drawn.
        vocabulary: of the V tokens.
        when: text at the right of the title, such as the step.
        near: (V, 2), as for `flatten`.
    """
    C = C.detach().cpu()[: LETTERS + 1]
    points, share = flatten(C, near)
    V, E = C.shape
    title = "The map of letters" + (f": the first {LETTERS} of {len(vocabulary) - 1:,}" if len(vocabulary) > V else "")
    how = f"C, {E} dimension{'s' * (E > 1)}"
    if E > 2:
        how += f" in the plane of the first two principal components (PCA): {share:.0%} of the variance"
    width, height, top = 640, 560, 78
    figure, axes = _page(width, height, title, how, when)
    axes.fill_between([14, width - 14], top, height - 14, color=GROUND, linewidth=0)

    disc = min(max(120 / V**0.5, 8.0), 23.0)  # diameter
    xy = points.double().numpy()
    low, high = xy.min(axis=0), xy.max(axis=0)
    room = np.array([width - 28, height - 14 - top]) - 2 * disc
    scale = (room / np.maximum(high - low, 1e-9)).min()  # one for both directions, which keeps distances comparable
    middle = np.array([width / 2, (top + height - 14) / 2])
    xy = _apart(middle + (xy - (low + high) / 2) * [scale, -scale], disc)
    names, of_kind = tokens(vocabulary)[:V], kinds(vocabulary)[:V]
    _discs(axes, xy, disc, of_kind)
    inside = [i for i in range(V) if len(names[i]) == 1]
    inks = [PAPER if i != BOUNDARY else INK for i in inside]
    _write(axes, [names[i] for i in inside], xy[inside], 0.6 * disc, inks, weight="bold", anchor="middle")
    below = [i for i in range(V) if len(names[i]) > 1]
    inks = [COLOURS[of_kind[i]] for i in below]
    _write(axes, [names[i] for i in below], xy[below] + [0, 0.75 * disc], max(0.34 * disc, 3.0), inks)
    legend = [name for name in COLOURS if name in of_kind]
    labels = [name if name in ("boundary", "other") else f"{name}s" for name in legend]
    room = 28 + 7 * np.array([len(label) for label in labels])  # for a disc and its label
    x = width - 14 - np.cumsum(room[::-1])[::-1]
    _discs(axes, np.stack([x + 17, np.full(len(x), 61.0)], axis=1), 10, legend)
    _write(axes, labels, np.stack([x + 28, np.full(len(x), 61.0)], axis=1), 8.5, [PALE] * len(x), anchor="left")
    return figure


def _apart(xy: np.ndarray, disc: float) -> np.ndarray:
    """Moves overlapping discs apart until they can be read: (N, 2) -> (N, 2)."""
    xy = xy.copy()
    for _ in range(20):
        gap = xy[:, None] - xy
        distance = np.hypot(*gap.T).T
        first, second = np.nonzero(np.triu(distance < 0.95 * disc, 1))
        if not len(first):
            break
        turn = first + second  # equal points have no direction of their own
        some = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        near = np.maximum(distance[first, second, None], 1e-9)
        push = np.where(near > 1e-6, gap[first, second] / near, some) * (disc - near) / 2
        np.add.at(xy, first, push)
        np.add.at(xy, second, -push)
    return xy


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
    rows = [("" if all(len(names[i]) == 1 for i in row) else " ").join(names[i] for i in row) for row in contexts]
    cell, left, top = 27, 28 + 7.6 * max(map(len, rows)), 88
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
        some = [place for place, i in enumerate(columns) if (len(names[i]) > 1) == long]
        labels, inks = [names[columns[place]] for place in some], [COLOURS[of_kind[columns[place]]] for place in some]
        above = np.stack([x[some], np.full(len(some), top - 11.0)], axis=1)
        anchor, size = ("upright", 6.0) if long else ("centre", 9.0)
        _write(axes, labels, above, size, inks, weight="bold", anchor=anchor)
    before = np.stack([np.full(R, left - 9.0), y], axis=1)
    _write(axes, rows, before, 9.0, [INK] * R, family=f"{FONT} Mono", anchor="right")
    row, column = np.nonzero(shares >= 0.045)
    said = shares[row, column]
    inks = [PAPER if share > 0.25 else INK for share in said]
    _write(axes, [f"{100 * share:.0f}" for share in said], np.stack([x[column], y[row]], axis=1), 7.0, inks)
    return figure


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
    _write(axes, labels, legend + [10, 0], 8.5, [PALE] * 2, anchor="left")
    below, beside = [left, top + high * R + 14.0], [22.0, top + high * R / 2]
    _write(axes, [f"hidden units, 1 to {H:,}"], np.array([below]), 8.5, [PALE], anchor="left")
    _write(axes, [f"contexts, 1 to {R:,}"], np.array([beside]), 8.5, [PALE], anchor="upright")
    return figure


def draw_marks(vocabulary: Vocabulary, size: int = 32) -> np.ndarray:
    """Draws each token as on the map of letters, for TensorBoard's projector.

    Returns:
        (V, size, size, 3) uint8.
    """
    V, side = len(vocabulary), math.ceil(len(vocabulary) ** 0.5)
    figure, axes = _page(size * side, size * side, "", "", "")
    place = np.arange(V)
    xy = size * (np.stack([place % side, place // side], axis=1) + 0.5)
    of_kind, names = kinds(vocabulary), tokens(vocabulary)
    _discs(axes, xy, 0.9 * size, of_kind)
    inks = [INK if kind == "boundary" else PAPER for kind in of_kind]
    for some in ({1}, {4, 5, 6, 7, 8}):  # a letter, or a code point such as U+540D
        own = [i for i in range(V) if len(names[i]) in some]
        scale = 0.5 if some == {1} else 0.14
        _write(axes, [names[i] for i in own], xy[own], scale * size, [inks[i] for i in own], anchor="middle")
    cells = rasterise(figure).reshape(side, size, side, size, 3)
    return cells.transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3)[:V]


def draw_learning_rates(lrs: Sequence[float], losses: Sequence[float], lr: float, low: float, high: float) -> "Figure":
    """Draws the loss over the logarithm of the learning rate (makemore part 2, "finding a good initial learning rate").

    Args:
        lrs: N learning rates.
        losses: N losses; one that is not finite leaves a gap.
        lr: the suggested learning rate.
        low: the lowest good one.
        high: the highest good one.
    """
    from matplotlib.figure import Figure

    figure = Figure((6.4, 4.2), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="log10 of the learning rate", ylabel="loss of the step")
    axes.plot(np.log10(lrs), losses, color=COLOURS["consonant"], linewidth=0.8)
    axes.axvspan(np.log10(low), np.log10(high), color=COLOURS["consonant"], alpha=0.12, linewidth=0)
    axes.axvline(np.log10(lr), color=COLOURS["vowel"], label=f"take {lr:.2g} = 10^{np.log10(lr):.1f}")
    finite = np.sort([loss for loss in losses if np.isfinite(loss)])
    axes.set_ylim(0.9 * finite[0], 1.1 * finite[int(0.97 * (len(finite) - 1))])  # the last steps may diverge
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _page(width: float, height: float, title: str, subtitle: str, when: str) -> "tuple[Figure, Axes]":
    """Makes a figure with invisible axes in pixels, from the top left corner, and writes its title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / 100, height / 100), dpi=100, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    _write(axes, [title], np.array([[14, 20]]), 11.5, [INK], weight="bold", anchor="left")
    _write(axes, [subtitle], np.array([[14, 41]]), 8.5, [PALE], anchor="left")
    _write(axes, [when], np.array([[width - 14, 20]]), 9.5, [PALE], anchor="right")
    return figure, axes


def _discs(axes: "Axes", xy: np.ndarray, diameter: float, of_kind: list[str]) -> None:
    """Draws a disc for each of N kinds at (N, 2) pixels, a ring for the boundary."""
    hollow, colours = [name == "boundary" for name in of_kind], [COLOURS[name] for name in of_kind]
    faces = [PAPER if empty else colour for empty, colour in zip(hollow, colours, strict=True)]
    edges = [colour if empty else PAPER for empty, colour in zip(hollow, colours, strict=True)]
    axes.scatter(xy[:, 0], xy[:, 1], s=(0.72 * diameter) ** 2, c=faces, edgecolors=edges, linewidths=0.8)


def _write(
    axes: "Axes",
    texts: list[str],
    xy: np.ndarray,
    size: float,
    colours: list[str],
    *,
    family: str = FONT,
    weight: str = "normal",
    anchor: str = "centre",
) -> None:
    """Writes N texts as outlines in one artist: matplotlib takes 0.4 ms for each of its own (LOG.md).

    Args:
        axes: of `_page`.
        texts: N of them.
        xy: (N, 2) pixels.
        size: in points.
        colours: N of them.
        family: of the font.
        weight: of the font.
        anchor: `left`, `right` or `centre` of a common line, the `middle` of each text, or `upright`, read from below.
    """
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path

    outlines = [_outline(text, size, family, weight, anchor) for text in texts]
    paths = [Path(outline.vertices + at, outline.codes) for outline, at in zip(outlines, xy, strict=True)]
    axes.add_collection(PathCollection(paths, facecolors=colours, linewidths=0), autolim=False)


@lru_cache(2**12)
def _outline(text: str, size: float, family: str, weight: str, anchor: str) -> "Path":
    """The outline of a text in pixels, y downwards, about its anchor."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import text_to_path

    points, codes = text_to_path.get_text_path(FontProperties(family=[family], weight=weight), text)
    vertices = np.reshape(points, (-1, 2)) * [1, -1] * (size * 100 / 72 / text_to_path.FONT_SCALE)
    if not len(vertices):
        return Path(vertices)
    (left, top), (right, low) = vertices.min(axis=0), vertices.max(axis=0)
    vertices -= [
        {"left": left, "right": right}.get(anchor, (left + right) / 2),
        (low + top) / 2 if anchor == "middle" else -0.5 * size,
    ]
    if anchor == "upright":
        vertices = vertices @ [[0, -1], [1, 0]] + [0, size - (right - left) / 2]
    return Path(vertices, codes)


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
