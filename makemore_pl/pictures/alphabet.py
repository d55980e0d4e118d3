"""How the characters of an alphabet are shown: their kinds, labels and fonts, and which of thousands.

Needs no Lightning. V is the vocabulary size.
"""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import torch

from makemore_pl.vocabulary import BOUNDARY, Vocabulary
from makemore_pl.windows import Counts

FONT = "DejaVu Sans"  # comes with matplotlib; it has Latin, Greek, Cyrillic, Hebrew and Arabic letters
ALPHABETS = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN")  # their letters are vowels or consonants
VOWELS = "aeiouæœøı" + "αεηιουω" + "аеиоуыэюяєі" + "աեէըիոօ" + "აეიოუ"  # noqa: RUF001 (they look alike)


def kind(character: str) -> str:
    """Classifies a character as `vowel`, `consonant` (including y), or `other`: of another script, or no letter."""
    lower = character.lower()
    base = unicodedata.normalize("NFD", lower)[0]
    if not base.isalpha() or not unicodedata.name(base, "").startswith(ALPHABETS) or lower in "ьъ":
        return "other"
    return "vowel" if base in VOWELS and lower not in "йў" else "consonant"


def visible(character: str) -> str:
    """A printable form of a character: a space as `␣`, a mark on a circle, an invisible one as its code point."""
    if character == " ":
        return "␣"
    if not character.isprintable():
        return f"U+{ord(character):04X}"
    return f"◌{character}" if unicodedata.category(character)[0] == "M" else character


@lru_cache(16)
def find_fonts(characters: str) -> tuple[list[str], set[str]]:
    """Finds the font of this machine with the most of the characters that `FONT` lacks.

    Matplotlib takes for each character the first of the families that has it. With them come the characters that no
    family has.
    """
    from matplotlib.font_manager import fontManager, get_font

    def lacking(family: str, wanted: set[str]) -> set[str]:
        font = get_font(regular[family])
        return {character for character in wanted if not font.get_char_index(ord(character))}

    # The font "Last Resort" has a box for every character.
    regular = {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if entry.style == "normal" and entry.weight == 400 and "Last" not in entry.name
    }
    missing = lacking(FONT, set(characters))
    if not missing:
        return [FONT], missing
    further = min(regular, key=lambda family: len(lacking(family, missing)))
    return [FONT, further], lacking(further, missing)


def tokens(vocabulary: Vocabulary) -> list[str]:
    """The labels of the V tokens in a figure; a character missing from all fonts as its code point, as `U+540D`."""
    _, missing = find_fonts(vocabulary.characters)
    return [".", *(f"U+{ord(x):04X}" if x in missing else visible(x) for x in vocabulary.characters)]


def most_frequent(vocabulary: Vocabulary, counts: Iterable[Counts] = ()) -> list[int]:
    """Chooses the tokens that a figure shows: the boundary, and the 100 most frequent characters of some splits."""
    often = torch.zeros(len(vocabulary), dtype=torch.int64)
    for split in counts:
        often.index_add_(0, split.y.cpu(), split.n.cpu())
    often[BOUNDARY] = often.sum() + 1
    return often.argsort(descending=True, stable=True)[:101].tolist()
