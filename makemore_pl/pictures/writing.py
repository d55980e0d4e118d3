"""Texts in figures, drawn as outlines in one artist: matplotlib takes 0.4 ms for each of its own (LOG.md).

A character that the font of the figures lacks is taken from another font of the machine, if one has it.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # slow to import: the functions that draw import it
    from matplotlib.axes import Axes
    from matplotlib.path import Path

FONT = "DejaVu Sans"
"""Shipped with matplotlib, so most figures look the same on every machine."""


class Fonts(NamedTuple):
    """The fonts for the characters of a vocabulary.

    Args:
        families: in the order in which they are searched for a character; the first is `FONT`.
        missing: the printable characters that none of them has.
    """

    families: tuple[str, ...]
    missing: frozenset[str]


@lru_cache(16)
def find_fonts(characters: str) -> Fonts:
    """Finds as few fonts of this machine as have the characters between them."""
    printable = set(filter(str.isprintable, characters))
    families, missing = [FONT], printable - drawable(FONT, printable)
    found = coverage(missing) if missing else {}
    while found:
        family = max(found, key=lambda name: (len(found[name] & missing), name))
        more = found.pop(family) & missing
        if not more:
            break
        more &= drawable(family, more)  # what matplotlib takes for the family, among its files
        if more and has_outlines(family, min(more)):
            families.append(family)
            missing -= more
    return Fonts(tuple(families), frozenset(missing))


def coverage(characters: Iterable[str]) -> dict[str, set[str]]:
    """Looks up which of some characters are in the upright fonts of normal weight of this machine, by family."""
    from matplotlib.font_manager import fontManager, get_font, weight_dict

    found: dict[str, set[str]] = {}
    for entry in fontManager.ttflist:
        weight = weight_dict[entry.weight] if isinstance(entry.weight, str) else entry.weight
        upright = entry.style == "normal" and weight == 400
        # A font of last resort has a box for every character.
        if not upright or "lastresort" in entry.name.replace(" ", "").lower():
            continue
        try:
            font = get_font(entry.fname)
        except (OSError, RuntimeError):  # removed since matplotlib listed it, or damaged
            continue
        some = {character for character in characters if font.get_char_index(ord(character))}
        if some and font.scalable:
            found.setdefault(entry.name, set()).update(some)
    return found


def drawable(family: str, characters: Iterable[str], weight: str = "normal") -> set[str]:
    """Picks the characters that a family has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=[family], weight=weight)))
    return {character for character in characters if font.get_char_index(ord(character))}


def has_outlines(family: str, character: str) -> bool:
    """Tells whether a family draws a character that it has: fonts of coloured emoji have pictures instead."""
    try:
        return bool(widths([character], 9.0, (family,))[0])
    except RuntimeError:
        return False


def write(
    axes: "Axes",
    texts: list[str],
    xy: np.ndarray,
    size: float,
    colours: list[str],
    *,
    families: tuple[str, ...] = (FONT,),
    weight: str = "normal",
    anchor: str = "centre",
) -> None:
    """Writes N texts in one artist.

    Args:
        axes: in pixels, y downwards.
        texts: N of them.
        xy: (N, 2) pixels.
        size: in points.
        colours: N of them.
        families: of the fonts; each character is in the first that has it.
        weight: `normal` or `bold`; texts in other fonts than `FONT` are normal.
        anchor: `left`, `right` or `centre` of a common line, the `middle` of each text, or `upright`, read from below.
    """
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path

    outlines = [outline(text, size, families, weight, anchor) for text in texts]
    paths = [Path(own.vertices + at, own.codes) for own, at in zip(outlines, xy, strict=True)]
    axes.add_collection(PathCollection(paths, facecolors=colours, linewidths=0, snap=False), autolim=False)


def widths(texts: list[str], size: float, families: tuple[str, ...] = (FONT,), weight: str = "normal") -> np.ndarray:
    """Measures texts as `write` draws them: (N,) pixels."""
    across = [np.asarray(outline(text, size, families, weight, "centre").vertices)[:, 0] for text in texts]
    return np.array([np.ptp(x) if len(x) else 0.0 for x in across])


@lru_cache(2**12)
def outline(text: str, size: float, families: tuple[str, ...], weight: str, anchor: str) -> "Path":
    """The outline of a text in pixels, y downwards, about its anchor."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import text_to_path

    if weight != "normal":  # few other fonts have another, and matplotlib would warn
        own = text.isascii() or len(drawable(FONT, set(text), weight)) == len(set(text))
        families, weight = ((FONT,), weight) if own else (families, "normal")
    points, codes = text_to_path.get_text_path(FontProperties(family=list(families), weight=weight), text)
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
