"""How the characters of an alphabet are shown: their kinds, their labels, and which of thousands.

Needs no Lightning. V is the vocabulary size.
"""

import unicodedata
from collections.abc import Iterable

import torch

from makemore_pl.pictures.writing import find_fonts
from makemore_pl.vocabulary import BOUNDARY, Vocabulary
from makemore_pl.windows import Counts

LETTERS = 500
"""Characters on the map and in the projector, at most: more would hide each other."""

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
    """A printable form of a character: a space as `␣`, a mark on a circle, an invisible one as its code point."""
    if character == " ":
        return "␣"
    if not character.isprintable():
        return f"U+{ord(character):04X}"
    return f"◌{character}" if unicodedata.category(character)[0] == "M" else character


def tokens(vocabulary: Vocabulary) -> list[str]:
    """The labels of the V tokens in a figure; a character missing from all fonts as its code point, as `U+540D`."""
    missing = find_fonts(vocabulary.characters).missing
    return [".", *(f"U+{ord(x):04X}" if x in missing else visible(x) for x in vocabulary.characters)]


def most_frequent(vocabulary: Vocabulary, counts: Iterable[Counts] = ()) -> list[int]:
    """Chooses the tokens that a figure shows: the boundary, and then the characters by frequency, at most `LETTERS`.

    Args:
        vocabulary: of V tokens.
        counts: of some splits; where they do not tell, the order is that of the vocabulary.
    """
    often = torch.zeros(len(vocabulary), dtype=torch.int64)
    for split in counts:
        often.index_add_(0, split.y.cpu(), split.n.cpu())
    often[BOUNDARY] = often.sum() + 1
    return often.argsort(descending=True, stable=True)[: LETTERS + 1].tolist()


def is_code(label: str) -> bool:
    """Tells whether a label of `tokens` is a code point, which needs more room than a character."""
    return len(label) > 2
