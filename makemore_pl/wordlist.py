"""A file of words, one a line -> the words, whole or piece by piece."""

import codecs
import operator
import os
import re
import select
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, Literal

PIECE = 2**24
"""Bytes of a list that are read at a time: a few million words."""

LONGEST_LINE = 2**24
"""The most bytes of a line, including the space around its word: a longer one is not read to its end."""

CONTROLS = bytes(sorted({*range(0x20), 0x7F} - set(b"\t\n\r")))
"""The ASCII control characters that a list may not hold anywhere; tabs and line ends have rules of their own."""

MISPLACED = re.compile(rb"[%b]|\r(?!\n)|\xc2[\x80-\x9f]|\xe2(?:\x80[\xa8-\xae]|\x81[\xa6-\xa9])" % re.escape(CONTROLS))
"""In UTF-8: those, a carriage return that ends no line, and `UNPRINTABLE` characters above ASCII."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that no word may have, since printed they change the lines around them: control characters, separators of
lines and paragraphs, embeddings, overrides and isolates of direction; and surrogates, which are no characters.
Joiners (U+200C, U+200D) and marks of direction are part of words in some scripts."""

STANDARD = "/dev/stdin", "/dev/fd/", "/proc/"
"""The beginnings of paths that lead to what this process has already opened, as a shell's `<(...)` does."""

STREAM = "<stdin>"
"""The path that a checkpoint keeps for a list that was read from a pipe and cannot be read again."""

PATIENCE = 5
"""Seconds to wait for the first byte from a named pipe."""

Normalization = Literal["NFC", "none"]
"""The Unicode form of words: é as one character, or as it is in the file."""


def shipped(name: str) -> Path:
    """Finds a file or folder that comes with the package: inside an installed one, beside it in a checkout."""
    inside = Path(__file__).with_name(name)
    return inside if inside.exists() else inside.parent.with_name(name)


def is_stream(path: str | Path) -> bool:
    """Whether a list can be read only once: stdin (`-`), a pipe, a device."""
    path = Path(path)
    if str(path).startswith(STANDARD):
        return True  # also if they lead to a file: in another process they lead elsewhere
    return str(path) in ("-", STREAM) or (path.exists() and not path.is_file() and not path.is_dir())


def recorded(path: str | Path) -> str:
    """Returns the path that a checkpoint keeps: absolute, since it may be used elsewhere; `STREAM` for a stream."""
    return STREAM if is_stream(path) else str(Path(path).absolute())


class Mistake(Exception):
    """A mistake in a piece of a list.

    Args:
        place: the byte of the piece at which it is.
        message: the mistake.
    """

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place


def read_words(
    path: str | Path,
    normalization: Normalization = "NFC",
    max_word_length: int = 1000,
    changed: Counter[str] | None = None,
) -> list[str]:
    """Reads all words of a list; the options are those of `read_pieces`.

    Raises:
        ValueError: as `read_pieces`, or if there is no word.
    """
    return join_pieces(path, read_pieces(path, 0, 1, normalization, max_word_length, changed))


def join_pieces(path: str | Path, pieces: Iterable[list[str]]) -> list[str]:
    """Joins the pieces of a list.

    Raises:
        ValueError: if there is no word; it names the path.
    """
    words = [word for piece in pieces for word in piece]
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
    """Reads a list of words, one a line, in UTF-8, piece by piece: it may be larger than memory.

    Blank lines, and the space around a word, are dropped.

    Args:
        path: the list; `-` for stdin.
        rank: the number of this reader among several; each reads some of the pieces and skips the others.
        world_size: the number of readers.
        normalization: the Unicode form that the words are put into; `none` leaves them as they are.
        max_word_length: the most characters of a word.
        changed: counts the words that differ from their lines, and the blank lines.

    Yields:
        The words of each piece, possibly none.

    Raises:
        ValueError: if the file cannot be read, is not UTF-8, or holds a control character or a word that is too long.
    """
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r}: cannot read this word list (its name holds a NUL)")
    changed = Counter() if changed is None else changed
    number = lines = offset = 0
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else _open(Path(path)) as file:
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
        raise ValueError(f"{path}: cannot read this word list ({error.strerror})") from None


def _open(path: Path) -> BinaryIO:
    """Opens a list. Opening a named pipe could wait for ever, and so could reading a device.

    Raises:
        ValueError: if it is a device, or a named pipe through which nothing comes.
        OSError: if it cannot be opened.
    """
    if str(path).startswith(STANDARD) or not is_stream(path):
        return path.open("rb")
    if not path.is_fifo():
        raise ValueError(f"{path}: is a device or a socket; name a file, or read from stdin with -")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not select.select([descriptor], [], [], PATIENCE)[0]:
        os.close(descriptor)
        raise ValueError(f"{path}: nothing came through this pipe in {PATIENCE} seconds; start what writes to it first")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def split_piece(
    raw: bytes, is_first: bool, normalization: Normalization, max_word_length: int, changed: Counter[str]
) -> list[str]:
    """Returns the words of some whole lines. Rare cases are looked for in the text as a whole, which is fast.

    Args:
        raw: the lines, in UTF-8.
        is_first: whether the list begins here, possibly with a byte order mark.
        normalization: as in `read_pieces`, like the others.
        max_word_length: as there.
        changed: as there.

    Raises:
        Mistake: if the lines cannot be used.
    """
    if is_first and (raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or raw[:2].count(0) == 1):
        raise Mistake(0, "this looks like UTF-16; save the list as UTF-8 and try again")
    try:
        text = raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        message = f"0x{raw[error.start]:02x} is not UTF-8; save the list as UTF-8 and try again"
        raise Mistake(error.start, message) from None
    ascii_ones = len(raw.translate(None, CONTROLS)) < len(raw) or raw.count(b"\r") > raw.count(b"\r\n")
    others = not raw.isascii() and (b"\xc2" in raw or b"\xe2\x80" in raw or b"\xe2\x81" in raw)
    if (ascii_ones or others) and (match := MISPLACED.search(raw)):
        character = describe_character(match[0].decode())
        raise Mistake(match.start(), f"control character {character}; expected one word a line")

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
            message = f"a word of {len(wrong):,} characters; expected at most {max_word_length:,} (max_word_length)"
            raise Mistake(_place(wrong, text, raw), message)

    if normalization != "none" and not (text.isascii() or unicodedata.is_normalized(normalization, text)):
        normalized = [normalize(word, normalization) for word in words]
        changed[normalization] += sum(map(operator.ne, words, normalized))
        return normalized
    return words


def describe_character(character: str) -> str:
    """Names a character that is not to be printed."""
    names = {"\0": "NUL", "\r": "a carriage return that ends no line"}
    name = names.get(character) or unicodedata.name(character, "").lower()
    return f"U+{ord(character):04X}" + f" ({name})" * bool(name)


def normalize(text: str, normalization: Normalization) -> str:
    """Puts a text into a Unicode form."""
    return text if normalization == "none" else unicodedata.normalize(normalization, text)


def _place(word: str, text: str, raw: bytes) -> int:
    """Returns the byte of the piece at which a word begins, the first one with this mistake."""
    return len(raw) - len(text[text.index(word) :].encode())  # from the end, since the text has no byte order mark


def _has_longer_line(text: str, length: int) -> bool:
    """Whether any line has more characters: jumps from one line feed to the last one within that length."""
    start = 0
    while len(text) - start > length:
        end = text.rfind("\n", start, start + length + 1)
        if end < 0:
            return True
        start = end + 1
    return False
