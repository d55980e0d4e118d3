"""A file of words, one a line -> the words, and their split into train, validation and test."""

import codecs
import hashlib
import operator
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Literal

from makemore_pl.memory import require_memory

PIECE = 2**24
"""Bytes of a list that are read at a time: a few million words."""

LONGEST_LINE = 2**24
"""Bytes that a line may have, with the space around its word: no more than that is read in search of its end."""

CONTROLS = bytes(sorted({*range(0x20), 0x7F} - set(b"\t\n\r")))
"""Control characters, none of which a list may hold; tabs and the ends of lines are another matter."""

MISPLACED = re.compile(rb"[%b]|\r(?!\n)|\xc2[\x80-\x84\x86-\x9f]" % re.escape(CONTROLS))
"""The same in UTF-8, with a carriage return that ends no line and the controls above ASCII, but for U+0085."""

Normalization = Literal["NFC", "none"]
"""The Unicode form of words: é as one character, or as it is in the file."""

Split = tuple[list[str], list[str], list[str]]
"""The words of train, validation and test."""


def shipped(name: str) -> Path:
    """Finds a file or folder that comes with the package: inside an installed one, beside it in a checkout."""
    inside = Path(__file__).with_name(name)
    return inside if inside.exists() else inside.parent.with_name(name)


class Mistake(Exception):
    """What is wrong with a piece of a list, and at which of its bytes."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(what)
        self.place = place


def read_words(
    path: str | Path,
    normalization: Normalization = "NFC",
    max_word_length: int = 1000,
    changed: Counter[str] | None = None,
) -> list[str]:
    """Reads a list of words, one a line, in UTF-8; blank lines and space around words do not count.

    Args:
        path: the list; `-` for stdin.
        normalization: the Unicode form that the words are put into; `none` to leave them as they are.
        max_word_length: characters that a word may have.
        changed: counts what was not taken as it stands.

    Raises:
        ValueError: if the file cannot be read, is not UTF-8, holds a control character, a word too long or no word, or
            its words are beyond this machine's memory.
    """
    with suppress(OSError):  # which is said below
        if Path(path).is_file():
            # A line of eight bytes becomes a word of 56, and of 8 for its place.
            require_memory(8 * Path(path).stat().st_size, f"{path}: all words at once (--data.split hashed holds none)")
    words = [word for piece in read_pieces(path, 0, 1, normalization, max_word_length, changed) for word in piece]
    if not words:
        raise ValueError(f"{path}: no words in this list; expected one a line")
    return words


def read_pieces(
    path: str | Path,
    rank: int = 0,
    world_size: int = 1,
    normalization: Normalization = "NFC",
    max_word_length: int = 1000,
    changed: Counter[str] | None = None,
) -> Iterator[list[str]]:
    """Reads a list as `read_words` does, piece by piece, so that it may be larger than memory.

    Args:
        path: the list.
        rank: which of several readers this is; each gets pieces of its own, and skips those of the others.
        world_size: how many readers there are.
        normalization: the Unicode form that the words are put into.
        max_word_length: characters that a word may have.
        changed: counts what was not taken as it stands.

    Yields:
        The words of each piece, possibly none.

    Raises:
        ValueError: as `read_words` does, but for a list without a word.
    """
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r}: cannot read this word list (its name holds a NUL)")
    changed = Counter() if changed is None else changed
    number = lines = offset = 0
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else Path(path).open("rb") as file:
            while True:
                if number % world_size == rank:
                    raw = file.read(PIECE) + file.readline(LONGEST_LINE)
                    if not raw:
                        return
                    if len(raw) >= PIECE + LONGEST_LINE:
                        raise ValueError(f"{path}: a line over {LONGEST_LINE:,} bytes; expected one word a line")
                    try:
                        yield split_piece(raw, number == 0, normalization, max_word_length, changed)
                    except Mistake as mistake:
                        line = lines + raw.count(b"\n", 0, mistake.place) + 1
                        where = f"line {line:,}, " if world_size == 1 else ""
                        raise ValueError(f"{path}, {where}byte {offset + mistake.place:,}: {mistake}") from None
                    lines += raw.count(b"\n")
                    offset += len(raw)
                else:
                    file.seek(PIECE, 1)
                    if not file.readline(LONGEST_LINE):
                        return
                    offset = file.tell()
                number += 1
    except OSError as error:
        fetched = "; nothing is downloaded: download it and name the file" if re.match(r"\w[\w:]+:/", str(path)) else ""
        raise ValueError(f"{path}: cannot read this word list ({error.strerror}{fetched})") from None


def split_piece(
    raw: bytes, is_first: bool, normalization: Normalization, max_word_length: int, changed: Counter[str]
) -> list[str]:
    """Returns the words of some lines. What most lists are without is looked for in all lines at once.

    Raises:
        Mistake: if there is one.
    """
    if is_first and (raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or raw[:2].count(0) == 1):
        raise Mistake(0, "this looks like UTF-16; save the list as UTF-8 and try again")
    try:
        text = raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        what = f"0x{raw[error.start]:02x} is not UTF-8; save the list as UTF-8 and try again"
        raise Mistake(error.start, what) from None
    if (len(raw.translate(None, CONTROLS)) < len(raw) or raw.count(b"\r") > raw.count(b"\r\n") or b"\xc2" in raw) and (
        match := MISPLACED.search(raw)
    ):
        character = match[0].decode()
        name = {"\0": " (NUL)", "\r": " (a carriage return that ends no line)"}.get(character, "")
        raise Mistake(match.start(), f"control character U+{ord(character):04X}{name}; expected one word a line")

    # Only LF and CRLF end a line: str.splitlines would cut words at U+2028 and the like.
    lines = (text.replace("\r\n", "\n") if "\r" in text else text).split("\n")
    if not lines[-1]:
        del lines[-1]
    if text.isascii() and " " not in text and "\t" not in text:
        words = list(filter(None, lines))
    else:
        stripped = [line.strip() for line in lines]
        words = list(filter(None, stripped))
        changed["space"] += sum(map(operator.ne, lines, stripped)) - (stripped.count("") - lines.count(""))
    changed["blank"] += len(lines) - len(words)

    wrong = next((word for word in words if "\t" in word), None) if "\t" in text else None
    if wrong is not None:
        raise Mistake(_place(wrong, text, raw), "a tab inside a word; expected one word a line")
    if _has_longer_line(text, max_word_length):
        wrong = next((word for word in words if len(word) > max_word_length), None)
        if wrong is not None:
            what = f"a word of {len(wrong):,} characters; expected at most {max_word_length:,} (max_word_length)"
            raise Mistake(_place(wrong, text, raw), what)

    if normalization != "none" and not (text.isascii() or unicodedata.is_normalized(normalization, text)):
        normalized = [normalize(word, normalization) for word in words]
        changed[normalization] += sum(map(operator.ne, words, normalized))
        return normalized
    return words


def normalize(text: str, normalization: Normalization) -> str:
    """Puts a text into a Unicode form."""
    return text if normalization == "none" else unicodedata.normalize(normalization, text)


def _place(word: str, text: str, raw: bytes) -> int:
    """The byte of the piece at which a word of it begins, the first one with what is wrong about it."""
    return len(raw) - len(text[text.index(word) :].encode())  # from the end: the beginning may lack its mark


def _has_longer_line(text: str, length: int) -> bool:
    """Whether any line is longer than so many characters: hops over them from one line feed to a far one."""
    start = 0
    while len(text) - start > length:
        end = text.rfind("\n", start, start + length + 1)
        if end < 0:
            return True
        start = end + 1
    return False


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
