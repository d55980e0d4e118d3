"""Words -> train, validation and test, shuffled or by a hash."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from makemore_pl.memory import require_memory_to_read
from makemore_pl.terminal import counted
from makemore_pl.wordlist import RULES, STREAM, is_stream, join_pieces, read_pieces

Split = tuple[list[str], list[str], list[str]]
"""The words of train, validation and test."""


class WordList:
    """A word list and its split, read on demand: held as a whole, or read in pieces and never held.

    Args:
        source: the list.
        in_pieces: read it piece by piece; each word is then split by its hash.
        options: the hyperparameters of a NamesDataModule, which documents them.

    Raises:
        ValueError: if it is to be read in pieces, but can be read only once.
    """

    def __init__(self, source: Path, in_pieces: bool, options: Mapping[str, Any]) -> None:
        self.source = source
        self.in_pieces = in_pieces
        self.options = options
        self.is_stream = is_stream(source)
        self.changed = Counter[str]()  # the words that differ from their lines
        if in_pieces and self.is_stream:
            raise ValueError(f"{source}: a list in pieces is read more than once; save it to a file")

    def read(self, rank: int = 0, world_size: int = 1) -> Iterator[list[str]]:
        """Reads the words piece by piece, or those of this reader among several.

        Raises:
            ValueError: if the list cannot be used.
        """
        if str(self.source) == STREAM:
            raise ValueError("the list of this run came from stdin, which is read once; name a file with --data.path")
        self.changed.clear()
        rules = {name: self.options[name] for name in RULES if name in self.options}
        return read_pieces(self.source, rank, world_size, changed=self.changed, **rules)

    @cached_property
    def all_words(self) -> list[str]:
        """The words of the whole list, which are held from now on."""
        require_memory_to_read(self.source)
        return join_pieces(self.source, self.read())

    @property
    def words(self) -> list[str]:
        """The words in use, in the order of the list."""
        return self.all_words[: self.options["num_words"]]

    @property
    def characters(self) -> set[str]:
        """The characters of the whole list."""
        return self._contents[0]

    @property
    def digest(self) -> str:
        """A hash of the words of the whole list, in order."""
        return self._contents[1]

    @cached_property
    def _contents(self) -> tuple[set[str], str]:
        """Both, from one reading."""
        characters, digest = set[str](), hashlib.blake2b(digest_size=16)
        for piece in self.read() if self.in_pieces else [self.all_words]:
            text = "\n".join([*piece, ""])
            characters.update(text)
            digest.update(text.encode())
        characters.discard("\n")
        if not characters:
            raise ValueError(f"{self.source}: no words in this list; expected one a line")
        return characters, digest.hexdigest()

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        """The words of `train`, `val` and `test`."""
        return self.split(self.words)

    def split(self, words: list[str]) -> dict[str, list[str]]:
        """Splits words as the options say."""
        options = self.options
        shares = options["train_fraction"], options["val_fraction"], options["split_seed"]
        if options["split"] == "hashed":
            train, val, test = hash_words(words, *shares)
        elif options["unique"]:
            copies = Counter(words)
            parts = split_words(list(copies), *shares)
            train, val, test = ([copy for word in part for copy in [word] * copies[word]] for part in parts)
        else:
            train, val, test = split_words(words, *shares)
        return {"train": train, "val": val if options["val_fraction"] else train, "test": test}

    def share(self, rank: int, world_size: int) -> Iterator[dict[str, list[str]]]:
        """Splits the words of one process among several, in pieces or all at once."""
        if self.in_pieces:
            yield from map(self.split, self.read(rank, world_size))
        else:
            yield {split: words[rank::world_size] for split, words in self.splits.items()}

    def where(self, words: Sequence[str]) -> list[str]:
        """Returns the split of each word: the first of `train`, `val` and `test` that has it, or `new`."""
        if not self.in_pieces:
            return [self._places.get(word, "new") for word in words]
        wanted, found = set(words), set[str]()
        for piece in self.read():
            found |= wanted.intersection(piece)
        places = _by_word(self.split(list(found)))
        return [places.get(word, "new") for word in words]

    @cached_property
    def _places(self) -> dict[str, str]:
        try:
            return _by_word(self.splits)
        except ValueError:  # too few words for a split: `novel` compares names with all of them
            return dict.fromkeys(self.words, "train")

    def unseen(self, split: str) -> list[str] | None:
        """Returns the words of a split that are not in train; None if no word can be in both."""
        if self.options["unique"] or self.options["split"] == "hashed":
            return None
        train = set(self.splits["train"])
        return [word for word in self.splits[split] if word not in train]


def _by_word(splits: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {word: split for split in ("test", "val", "train") for word in splits[split]}


def split_words(words: Sequence[str], train_fraction: float = 0.8, val_fraction: float = 0.1, seed: int = 42) -> Split:
    """Shuffles the words and cuts them into train, validation and test (the lecture's 80/10/10).

    Args:
        words: the words, in the order of the list.
        train_fraction: the share of the words to train on.
        val_fraction: the share to validate on; the rest is for the test.
        seed: of `random.Random`, as in the lecture.

    Returns:
        Three lists that hold every word once.

    Raises:
        ValueError: if the fractions are not in range, or a split with a share gets no word.
    """
    both = _sum_of_shares(train_fraction, val_fraction)
    shuffled = list(words)
    random.Random(seed).shuffle(shuffled)
    first, second = int(train_fraction * len(words)), int(both * len(words))
    splits = shuffled[:first], shuffled[first:second], shuffled[second:]
    shares = {"training": train_fraction, "validation": val_fraction, "test": 1 - both}
    for (name, share), split in zip(shares.items(), splits, strict=True):
        if share > 0 and not split:
            option = "train_fraction" if name == "training" else "val_fraction"
            raise ValueError(
                f"{share:.0%} of {counted(len(words), 'word')} leaves no {name} word; add words or raise "
                f"{option} (train_fraction 1 and val_fraction 0 hold no words back)"
            )
    return splits


def hash_words(words: Iterable[str], train_fraction: float = 0.8, val_fraction: float = 0.1, seed: int = 42) -> Split:
    """Splits words into train, validation and test by a hash of their characters.

    The split of a word depends on no other word, so equal words stay together, and a list can be split piece by piece.

    Args:
        words: any of the words.
        train_fraction: the share of distinct words to train on, on average.
        val_fraction: the share to validate on; the rest is for the test.
        seed: of the hash.

    Returns:
        Three lists, each in the order of the words.

    Raises:
        ValueError: if the fractions are not in range.
    """
    both = _sum_of_shares(train_fraction, val_fraction)
    if train_fraction == 1:
        return list(words), [], []
    splits: Split = ([], [], [])
    # The first bytes of a hash, read as digits of a number in [0, 1), compare as that number does.
    first, second = (int(share * 2**64).to_bytes(9, "big") for share in (train_fraction, both))
    seeded = hashlib.blake2b(f"{seed} ".encode(), digest_size=8)
    for word in words:
        digest = seeded.copy()
        digest.update(word.encode("utf-8", "surrogatepass"))
        place = b"\0" + digest.digest()
        splits[(place >= first) + (place >= second)].append(word)
    return splits


def _sum_of_shares(train_fraction: float, val_fraction: float) -> float:
    """Checks the fractions, and returns the share of words that are not for the test."""
    both = round(train_fraction + val_fraction, 9)  # 0.7 + 0.1 is a little less than 0.8
    if not (0 < train_fraction <= 1 and val_fraction >= 0 and both <= 1):
        raise ValueError(
            f"train_fraction {train_fraction:g} and val_fraction {val_fraction:g}: expected shares of 1, train above 0"
        )
    return both
