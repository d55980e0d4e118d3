"""Characters <-> integers. Token 0 is the boundary before and after every word, drawn as `.`."""

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from makemore_pl.terminal import brief, counted
from makemore_pl.wordlist import UNPRINTABLE, describe_character

BOUNDARY = 0


class Vocabulary:
    """The characters of a model, numbered from 1 in sorted order; 0 is the boundary.

    The boundary is an id and not a character, so words may contain a `.` of their own.

    Args:
        characters: the distinct characters, sorted: one string, so that it fits into a checkpoint.

    Raises:
        ValueError: if the characters are not distinct and sorted, or one is not to be printed.
    """

    def __init__(self, characters: str) -> None:
        if list(characters) != sorted(set(characters)):
            raise ValueError(f"vocabulary {brief(characters)}: expected distinct characters in sorted order")
        if match := UNPRINTABLE.search(characters):
            raise ValueError(f"vocabulary has {describe_character(match[0])}, which no list may have")
        self.characters = characters
        self.stoi = {character: i for i, character in enumerate(characters, start=1)}
        self.itos = {i: character for character, i in self.stoi.items()} | {BOUNDARY: "."}
        self.has_capitals = characters != characters.lower()

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

    def __hash__(self) -> int:
        return hash(self.characters)

    def in_its_case(self, text: str) -> str:
        """Puts a text into small letters if the vocabulary has no capitals."""
        return text if self.has_capitals else text.lower()

    def encode(self, word: str) -> list[int]:
        """Returns the ids of the word's characters, without boundaries.

        Raises:
            ValueError: if a character is not in the vocabulary.
        """
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
        """Returns all words as one stream: the ids of each word, then a boundary.

        Args:
            words: any number of words.

        Returns:
            (N,) int64, N = the number of characters + the number of words.

        Raises:
            ValueError: if a character is not in the vocabulary.
        """
        # Whole lists go through code points and a lookup table; a loop over characters is 20 times slower.
        lengths = torch.tensor([len(word) for word in words], dtype=torch.int64)
        inside = torch.ones(int(lengths.sum()) + len(words), dtype=torch.bool)
        inside[(lengths + 1).cumsum(0) - 1] = False

        code_points = _code_points("".join(words))
        highest = ord(self.characters[-1]) if self.characters else 0
        table = torch.zeros(highest + 2, dtype=torch.int64)  # the last entry is for all higher code points
        table[_code_points(self.characters)] = torch.arange(1, len(self))
        ids = table[code_points.clamp(max=highest + 1)]
        if not ids.all():
            for word in words:
                self.encode(word)  # raises, and names the word and its character
        stream = torch.zeros(inside.shape, dtype=torch.int64)
        stream[inside] = ids
        return stream

    def decode_words(self, stream: Tensor) -> list[str]:
        """Returns the words of a stream made by `encode_words`."""
        end = next(i for i in range(len(self)) if chr(i) not in self.stoi)  # a character that is in no word
        table = torch.cat([torch.tensor([end]), _code_points(self.characters)]).to(torch.int32)
        text = table[stream].numpy().tobytes().decode("utf-32-le", "surrogatepass")
        return text.split(chr(end))[:-1]


def as_in_list(texts: Sequence[str], vocabulary: Vocabulary, what: str) -> Sequence[str]:
    """Puts texts into small letters if the vocabulary has no capitals, with a warning if that changes one.

    Args:
        texts: words, or the beginnings of words.
        vocabulary: of the list.
        what: one of them, for the warning.
    """
    if message := describe_case(texts, vocabulary, what):
        warnings.warn(message, stacklevel=2)
    return [vocabulary.in_its_case(text) for text in texts]


def describe_case(texts: Sequence[str], vocabulary: Vocabulary, what: str) -> str:
    """Says which texts a vocabulary without capitals changes to small letters; empty if none."""
    changed = [text for text in texts if vocabulary.in_its_case(text) != text]
    if not changed:
        return ""
    which = f"{what} {changed[0]!r}" if len(texts) == 1 else f"{counted(len(changed), what)}, such as {changed[0]!r},"
    return f"{which} taken in small letters: the list has no capitals"


def _code_points(text: str) -> Tensor:
    """Returns the Unicode code points of a text, (len(text),) int64."""
    # "surrogatepass": a str may hold lone surrogates, which are then characters like others.
    raw = bytearray(text.encode("utf-32-le", "surrogatepass"))
    return torch.frombuffer(raw, dtype=torch.int32).to(torch.int64) if raw else torch.zeros(0, dtype=torch.int64)
