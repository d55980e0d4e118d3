"""A file of words, one a line -> the words, and their split into train, validation and test."""

import hashlib
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

PIECE = 2**24
"""Bytes of a list that are read at a time: a few million words."""

Split = tuple[list[str], list[str], list[str]]
"""The words of train, validation and test."""


def default_path() -> Path:
    """Where `names.txt` is: beside the package in a checkout, inside it once installed."""
    inside = Path(__file__).with_name("names.txt")
    return inside if inside.exists() else inside.parent.with_name("names.txt")


def read_words(path: str | Path) -> list[str]:
    """Reads a list of words, one a line, in UTF-8; blank lines and space around words do not count.

    Args:
        path: the list; `-` for stdin.

    Raises:
        ValueError: if the file cannot be read, is not UTF-8, or holds no word.
    """
    words = [word for piece in read_pieces(path) for word in piece]
    if not words:
        raise ValueError(f"{path}: no words in this list; expected one a line")
    return words


def read_pieces(path: str | Path, rank: int = 0, world_size: int = 1) -> Iterator[list[str]]:
    """Reads a list as `read_words` does, piece by piece, so that it may be larger than memory.

    Args:
        path: the list.
        rank: which of several readers this is; each gets pieces of its own, and skips those of the others.
        world_size: how many readers there are.

    Yields:
        The words of each piece, possibly none.

    Raises:
        ValueError: if the file cannot be read or is not UTF-8.
    """
    number = lines = 0
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else Path(path).open("rb") as file:
            while True:
                if number % world_size == rank:
                    raw = file.read(PIECE) + file.readline()
                    if not raw:
                        return
                    try:
                        text = raw.decode("utf-8-sig" if number == 0 else "utf-8")
                    except UnicodeDecodeError as error:
                        line = lines + raw.count(b"\n", 0, error.start) + 1
                        where = f"line {line}" if world_size == 1 else f"byte {file.tell() - len(raw) + error.start:,}"
                        raise ValueError(
                            f"{path}, {where}: byte 0x{raw[error.start]:02x} is not UTF-8; "
                            "save the list as UTF-8 and try again"
                        ) from None
                    # Only line feeds end a line: str.splitlines would cut words at U+2028 and the like.
                    yield [word for line in text.split("\n") if (word := line.strip())]
                    lines += raw.count(b"\n")
                else:
                    file.seek(PIECE, 1)
                    if not file.readline():
                        return
                number += 1
    except OSError as error:
        raise ValueError(f"{path}: cannot read this word list ({error.strerror})") from None


def split_words(words: Sequence[str], train_fraction: float = 0.8, val_fraction: float = 0.1, seed: int = 42) -> Split:
    """Shuffles the words and cuts them into train, validation and test (the lecture's 80/10/10).

    Args:
        words: the words, in the order of the list.
        train_fraction: the share of the words to train on.
        val_fraction: the share to validate on; what is left is for the test.
        seed: of `random.Random`, as in the lecture.

    Returns:
        Three lists that hold every word once.

    Raises:
        ValueError: if the fractions are not in range, or a split with a share gets no word.
    """
    held = check_shares(train_fraction, val_fraction)
    shuffled = list(words)
    random.Random(seed).shuffle(shuffled)
    first, second = int(train_fraction * len(words)), int(held * len(words))
    splits = shuffled[:first], shuffled[first:second], shuffled[second:]
    shares = {"train": train_fraction, "validation": val_fraction, "test": 1 - held}
    for (name, share), split in zip(shares.items(), splits, strict=True):
        if share > 0 and not split:
            raise ValueError(
                f"{len(words)} words are too few: {share:.0%} for {name} is not one word; "
                "give more words or other fractions (train_fraction 1 and val_fraction 0 hold none back)"
            )
    return splits


def hash_words(words: Iterable[str], train_fraction: float = 0.8, val_fraction: float = 0.1, seed: int = 42) -> Split:
    """Sends each word to train, validation or test by a hash of its characters.

    Where a word goes depends on no other word, so equal words go together, and a list can be split piece by piece.

    Args:
        words: any of the words.
        train_fraction: the share of distinct words to train on, on average.
        val_fraction: the share to validate on; what is left is for the test.
        seed: another one, another split.

    Returns:
        Three lists, each in the order of the words.

    Raises:
        ValueError: if the fractions are not in range.
    """
    held = check_shares(train_fraction, val_fraction)
    if train_fraction == 1:
        return list(words), [], []
    splits: Split = ([], [], [])
    # The first bytes of a hash, read as digits of a number in [0, 1), compare as that number does.
    first, second = (int(share * 2**64).to_bytes(9, "big") for share in (train_fraction, held))
    seeded = hashlib.blake2b(f"{seed} ".encode(), digest_size=8)
    for word in words:
        digest = seeded.copy()
        digest.update(word.encode("utf-8", "surrogatepass"))
        place = b"\0" + digest.digest()
        splits[(place >= first) + (place >= second)].append(word)
    return splits


def check_shares(train_fraction: float, val_fraction: float) -> float:
    """Returns the share of words that are not for the test.

    Raises:
        ValueError: if the fractions are not in range.
    """
    held = round(train_fraction + val_fraction, 9)  # 0.7 + 0.1 is a little less than 0.8
    if not (0 < train_fraction <= 1 and val_fraction >= 0 and held <= 1):
        raise ValueError(
            f"train_fraction {train_fraction:g} and val_fraction {val_fraction:g}: expected shares of 1, train above 0"
        )
    return held
