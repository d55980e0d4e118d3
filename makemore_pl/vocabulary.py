"""Characters <-> integers. Token 0 is the boundary before and after every word, drawn as `.`."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

BOUNDARY = 0


class Vocabulary:
    """The characters of a model, numbered from 1 in sorted order; 0 is the boundary.

    The boundary is an id and not a character, so words may contain a `.` of their own.

    Args:
        characters: the distinct characters, sorted: one string, so that it fits into a checkpoint.

    Raises:
        ValueError: if the characters are not distinct and sorted, or one is a line end, which is in no word.
    """

    def __init__(self, characters: str) -> None:
        if list(characters) != sorted(set(characters) - {"\n"}):
            raise ValueError(
                f"vocabulary is {characters[:40]!r}: expected distinct characters in sorted order, without line ends"
            )
        self.characters = characters
        self.stoi = {character: i for i, character in enumerate(characters, start=1)}
        self.itos = {i: character for character, i in self.stoi.items()} | {BOUNDARY: "."}

    @classmethod
    def from_words(cls, words: Iterable[str]) -> "Vocabulary":
        """Makes the vocabulary of the characters in `words`."""
        return cls("".join(sorted(set("".join(words)))))

    def __len__(self) -> int:
        """V, the number of tokens: the characters and the boundary."""
        return len(self.characters) + 1

    def __repr__(self) -> str:
        return f"Vocabulary({self.characters!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.characters == other.characters

    def in_its_case(self, text: str) -> str:
        """Puts a text into small letters if the vocabulary has no capitals."""
        has_capitals = self.characters != self.characters.lower()
        return text if has_capitals else text.lower()

    def encode(self, word: str) -> list[int]:
        """Returns the ids of the word's characters, without boundaries; a character that has none is a ValueError."""
        for character in word:
            if character not in self.stoi:
                raise ValueError(
                    f"{word!r}: character {character!r} is not among the {len(self) - 1:,} of this vocabulary"
                )
        return [self.stoi[character] for character in word]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the characters of the ids, a boundary drawn as `.`."""
        return "".join(self.itos[i] for i in ids)

    def encode_words(self, words: Sequence[str]) -> Tensor:
        """Returns all words as one stream (N,) int64: the ids of each word, then a boundary; raises like `encode`."""
        # A lookup table indexed by code points: a loop over characters is 20 times slower.
        highest = ord(self.characters[-1]) if self.characters else 0
        table = torch.zeros(highest + 2, dtype=torch.int64)  # the last entry is for all higher code points
        table[_code_points(self.characters)] = torch.arange(1, len(self))
        stream = table[_code_points("".join(f"{word}\n" for word in words)).clamp(max=highest + 1)]
        # A line end has no id of its own, so it gives the boundary; and so does an unknown character.
        if (stream == BOUNDARY).sum() > len(words):
            for word in words:
                self.encode(word)  # raises, and names the word and its character
        return stream


def _code_points(text: str) -> Tensor:
    """Returns the Unicode code points of a text, (len(text),) int64."""
    return torch.from_numpy(np.frombuffer(text.encode("utf-32-le"), dtype=np.int32).astype(np.int64))
