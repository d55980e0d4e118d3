"""Numbers -> figures: the map of letters, what comes next after a few contexts, learning rates. Knows no Lightning.

Shapes: V vocabulary size, E embedding dimension, T block size (context length), R contexts drawn.

Over 300 lines: outlines in a few artists are drawn ten times as fast as matplotlib's own axes and texts (LOG.md).
"""

import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from makemore_pl.vocabulary import BOUNDARY, Vocabulary

if TYPE_CHECKING:  # takes its time, so it is imported where something is drawn
    from matplotlib.figure import Figure
    from matplotlib.path import Path

LETTERS = 500
"""Characters on the map, at most: more would hide each other."""

COLUMNS = 40
"""Characters in the heat map, at most."""

INK, PALE, PAPER, GROUND = "#22262b", "#767c84", "#ffffff", "#f3f5f7"
COLOURS = {"vowel": "#c8434f", "consonant": "#2f6690", "other": "#7d8790", "boundary": INK}
"""Also where colours cannot be told apart, the kinds differ in lightness, and the boundary in its shape."""

FONT = "DejaVu Sans"
"""It comes with matplotlib, so that a figure is the same everywhere."""


def kind(character: str) -> str:
    """Tells what a character is by its Latin base letter, accents removed: `vowel` (a, e, i, o, u), `consonant`
    (the others, y too), or `other`."""
    base = unicodedata.normalize("NFD", character)[0].lower()
    if not ("a" <= base <= "z"):
        return "other"
    return "vowel" if base in "aeiou" else "consonant"


def kinds(vocabulary: Vocabulary) -> list[str]:
    """The kinds of all V tokens, of which the first is the `boundary`."""
    return ["boundary", *map(kind, vocabulary.characters)]


def visible(character: str) -> str:
    """Returns what stands for a character in print: a space as `␣`, what shows nothing by itself as `U+200D`."""
    if character == " ":
        return "␣"
    return character if character.isprintable() and not unicodedata.combining(character) else f"U+{ord(character):04X}"


def tokens(vocabulary: Vocabulary) -> list[str]:
    """What stands for each of the V tokens in a figure: those that its font lacks are drawn as `U+540D`."""
    font = _font()
    labels = [visible(character) for character in vocabulary.characters]
    return ["."] + [x if len(x) > 1 or ord(x) in font else f"U+{ord(x):04X}" for x in labels]


@cache
def _font() -> frozenset[int]:
    """The code points that the font can draw in each of the three faces that are used here."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    sans, mono = [FONT], [f"{FONT} Mono"]
    faces = [FontProperties(family=sans), FontProperties(family=sans, weight="bold"), FontProperties(family=mono)]
    return frozenset.intersection(*(frozenset(get_font(findfont(face)).get_charmap()) for face in faces))


def flatten(C: Tensor, near: Tensor | None = None) -> tuple[Tensor, float]:
    """Lays embeddings into the plane: as they are up to two dimensions, else by their principal components.

    Args:
        C: (V, E).
        near: (V, 2) where they lay before. Principal components are free to turn and to flip, so that pictures of
            one run would jump; the plane is turned to where the points lie nearest to these.

    Returns:
        (V, 2), and the share of the variance that the plane shows.
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
        when: what stands at the end of the title, such as the step.
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
    sheet = Sheet(width, height, title, how, when)
    sheet.rectangle(14, top, width - 14, height - 14)

    disc = min(max(120 / V**0.5, 8.0), 23.0)
    xy = points.double().numpy()
    low, high = xy.min(axis=0), xy.max(axis=0)
    room = np.array([width - 28, height - 14 - top]) - 2 * disc
    scale = (room / np.maximum(high - low, 1e-9)).min()  # one for both directions, so that what looks near is near
    middle = np.array([width / 2, (top + height - 14) / 2])
    xy = _apart(middle + (xy - (low + high) / 2) * [scale, -scale], disc)
    names, of_kind = tokens(vocabulary)[:V], kinds(vocabulary)[:V]
    colours = [COLOURS[name] for name in of_kind]
    sheet.discs(xy, disc, colours, hollow=[name == "boundary" for name in of_kind])
    inside = [i for i in range(V) if len(names[i]) == 1]
    inks = [PAPER if i != BOUNDARY else INK for i in inside]
    sheet.write(
        [names[i] for i in inside], xy[inside], [0.6 * disc] * len(inside), inks, weight="bold", anchor="middle"
    )
    below = [i for i in range(V) if len(names[i]) > 1]
    sizes = [max(0.34 * disc, 3.0)] * len(below)
    sheet.write([names[i] for i in below], xy[below] + [0, 0.75 * disc], sizes, [COLOURS[of_kind[i]] for i in below])

    x = width - 14.0
    for name in [name for name in reversed(COLOURS) if name in of_kind]:
        plural = name if name in ("boundary", "other") else f"{name}s"
        x -= sheet.write([plural], np.array([[x, 61.0]]), [8.5], [PALE], anchor="right") + 10
        sheet.discs(np.array([[x, 61.0]]), 10, [COLOURS[name]], hollow=[name == "boundary"])
        x -= 20
    return sheet.figure


def _apart(xy: np.ndarray, disc: float) -> np.ndarray:
    """Moves (N, 2) places of discs that hide each other as far as it takes to read them."""
    xy = xy.copy()
    for _ in range(20):
        gap = xy[:, None] - xy
        distance = np.hypot(*gap.T).T
        first, second = np.nonzero(np.triu(distance < 0.95 * disc, 1))
        if not len(first):
            break
        turn = first + second  # at the very same place: apart in some direction
        some = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        near = np.maximum(distance[first, second, None], 1e-9)
        push = np.where(near > 1e-6, gap[first, second] / near, some) * (disc - near) / 2
        np.add.at(xy, first, push)
        np.add.at(xy, second, -push)
    return xy


def draw_next(
    probabilities: Tensor, contexts: Sequence[Sequence[int]], vocabulary: Vocabulary, when: str = ""
) -> "Figure":
    """Draws what comes next after a few contexts as a heat map, with the shares that stand out in per cent.

    Args:
        probabilities: (R, V), each row of which sums to 1; of large alphabets the `COLUMNS` likeliest are drawn.
        contexts: R of them, T ids each.
        vocabulary: of the V tokens.
        when: what stands at the end of the title, such as the step.
    """
    V, R = len(vocabulary), len(contexts)
    columns = probabilities.amax(dim=0).topk(min(V, COLUMNS)).indices.sort().values.tolist()
    shares = probabilities.detach().cpu()[:, columns].double().numpy()
    names, of_kind = tokens(vocabulary), kinds(vocabulary)
    rows = [("" if all(len(names[i]) == 1 for i in row) else " ").join(names[i] for i in row) for row in contexts]
    cell, left, top = 27, 28 + 7.6 * max(map(len, rows)), 88
    few = f" (the {len(columns)} likeliest of {V:,})" if len(columns) < V else ""
    width = max(left + cell * len(columns) + 12, 420)
    sheet = Sheet(width, top + cell * R + 12, "What comes next", f"probability in %, after each context{few}", when)

    x = left + cell * (np.arange(len(columns)) + 0.5)
    y = top + cell * (np.arange(R) + 0.5)
    across, down = np.meshgrid(x, y)
    places = np.stack([across.ravel(), down.ravel()], axis=1)
    sheet.cells(places, cell - 1.5, heat(shares.ravel()))
    above = np.stack([x, np.full(len(x), top - 11.0)], axis=1)
    colours = [COLOURS[of_kind[i]] for i in columns]
    for turned in (False, True):  # what is too wide for its column stands upright
        some = [place for place, i in enumerate(columns) if (len(names[i]) > 1) == turned]
        labels, ink = [names[columns[place]] for place in some], [colours[place] for place in some]
        anchor, size = ("upright", 6.0) if turned else ("centre", 9.0)
        sheet.write(labels, above[some], [size] * len(some), ink, weight="bold", anchor=anchor)
    before = np.stack([np.full(R, left - 9.0), y], axis=1)
    sheet.write(rows, before, [9.0] * R, [INK] * R, family=f"{FONT} Mono", anchor="right")
    said = np.flatnonzero(shares.ravel() >= 0.045)
    parts = shares.ravel()[said]
    inks = [PAPER if share > 0.25 else INK for share in parts]
    sheet.write([f"{100 * share:.0f}" for share in parts], places[said], [7.0] * len(said), inks)
    return sheet.figure


def draw_learning_rates(lrs: Sequence[float], losses: Sequence[float], lr: float, low: float, high: float) -> "Figure":
    """Draws the loss over the logarithm of the learning rate (makemore part 2, "finding a good initial learning rate").

    Args:
        lrs: N learning rates.
        losses: the loss at each; those that are no finite numbers leave a gap.
        lr: the one to take.
        low: the lowest that is good.
        high: the highest that is good.
    """
    from matplotlib.figure import Figure

    figure = Figure((6.4, 4.2), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="log10 of the learning rate", ylabel="loss of the step")
    axes.plot(np.log10(lrs), losses, color=COLOURS["consonant"], linewidth=0.8)
    axes.axvspan(np.log10(low), np.log10(high), color=COLOURS["consonant"], alpha=0.12, linewidth=0)
    axes.axvline(np.log10(lr), color=COLOURS["vowel"], label=f"take {lr:.2g} = 10^{np.log10(lr):.1f}")
    finite = np.sort([loss for loss in losses if np.isfinite(loss)])
    axes.set_ylim(0.9 * finite[0], 1.1 * finite[int(0.97 * (len(finite) - 1))])  # the last steps may fly away
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def heat(shares: np.ndarray) -> np.ndarray:
    """Colours for shares between 0 and 1, pale to dark: (N,) -> (N, 3). The same in every picture, so that they
    compare; by the square root, which tells the small ones apart."""
    scale = np.array([[246, 248, 250], [169, 199, 222], [47, 102, 144], [18, 44, 69]]) / 255
    return np.stack([np.interp(shares**0.5, np.linspace(0, 1, len(scale)), channel) for channel in scale.T], axis=1)


class Sheet:
    """A figure under two lines of text, measured in pixels from the top left corner.

    All that is alike becomes one artist: with matplotlib's own axes and texts a figure would take five times as long,
    and these are drawn while somebody waits for the training.

    Args:
        width: of the figure.
        height: of the figure.
        title: its first line.
        subtitle: its second line.
        when: what stands at the right of the title.
    """

    def __init__(self, width: float, height: float, title: str, subtitle: str, when: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        pixel = 1 / 100  # inches
        self.figure = Figure((width * pixel, height * pixel), dpi=100, facecolor=PAPER)
        FigureCanvasAgg(self.figure)
        self.shapes = (
            Affine2D().scale(pixel) + self.figure.dpi_scale_trans
        )  # of paths about their own origin, y upwards
        self.places = Affine2D().scale(pixel, -pixel).translate(0, height * pixel) + self.figure.dpi_scale_trans
        self.write([title], np.array([[14.0, 20.0]]), [11.5], [INK], weight="bold", anchor="left")
        self.write([subtitle], np.array([[14.0, 41.0]]), [8.5], [PALE], anchor="left")
        self.write([when], np.array([[width - 14.0, 20.0]]), [9.5], [PALE], anchor="right")

    def write(
        self,
        texts: list[str],
        xy: np.ndarray,
        sizes: list[float],
        colours: list[str],
        family: str = FONT,
        weight: str = "normal",
        anchor: str = "centre",
    ) -> float:
        """Writes texts at their places, and returns the width of the widest in pixels.

        Args:
            texts: N of them.
            xy: (N, 2).
            sizes: N of them, in points.
            colours: N of them.
            family: of the font.
            weight: of the font.
            anchor: `left`, `right` or `centre` of a common line; the `middle` of each text itself; or `upright`, which
                reads from below.
        """
        paths = [_outline(text, size, family, weight, anchor) for text, size in zip(texts, sizes, strict=True)]
        self._stamp(paths, xy, facecolors=colours, linewidths=0)
        return max((float(np.ptp(np.asarray(path.vertices)[:, 0])) for path in paths if len(path)), default=0.0)

    def discs(self, xy: np.ndarray, diameter: float, colours: list[str], hollow: list[bool]) -> None:
        """Draws discs, and rings where they are hollow."""
        from matplotlib.path import Path

        faces = [PAPER if empty else colour for colour, empty in zip(colours, hollow, strict=True)]
        edges = [colour if empty else PAPER for colour, empty in zip(colours, hollow, strict=True)]
        circle = Path.circle(radius=diameter / 2)
        self._stamp([circle], xy, facecolors=faces, edgecolors=edges, linewidths=0.8)

    def rectangle(self, left: float, top: float, right: float, bottom: float) -> None:
        """Draws a pale ground."""
        from matplotlib.path import Path

        corners = np.array([[0, 0], [1, 0], [1, -1], [0, -1], [0, 0]]) * np.array([right - left, bottom - top])
        self._stamp([Path(corners)], np.array([[left, top]]), facecolors=GROUND, linewidths=0)

    def cells(self, xy: np.ndarray, side: float, colours: np.ndarray) -> None:
        """Draws squares."""
        from matplotlib.path import Path

        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]]) * side
        self._stamp([Path(corners)], xy, facecolors=colours, linewidths=0, antialiaseds=False)

    def _stamp(self, paths: "list[Path]", xy: np.ndarray, **style: Any) -> None:
        from matplotlib.collections import PathCollection

        if len(xy):
            collection = PathCollection(paths, offsets=xy, offset_transform=self.places, **style)
            collection.set_transform(self.shapes)
            self.figure.add_artist(collection)


@lru_cache(2**12)
def _outline(text: str, size: float, family: str, weight: str, anchor: str) -> "Path":
    """The outline of a text in pixels about the point where it is anchored."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import text_to_path

    points, codes = text_to_path.get_text_path(FontProperties(family=[family], weight=weight), text)
    vertices = np.reshape(points, (-1, 2)) * (size * 100 / 72 / text_to_path.FONT_SCALE)
    if not len(vertices):
        return Path(vertices)
    (left, low), (right, high) = vertices.min(axis=0), vertices.max(axis=0)
    x = {"left": left, "right": right}.get(anchor, (left + right) / 2)
    y = (low + high) / 2 if anchor == "middle" else 0.5 * size
    vertices = vertices - [x, y]
    if anchor == "upright":
        vertices = vertices @ [[0, 1], [-1, 0]] + [0, (right - left) / 2 - size]
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
