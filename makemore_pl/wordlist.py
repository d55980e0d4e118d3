"""A file of words, one a line -> the words, whole or piece by piece."""

import operator
import os
import re
import select
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from makemore_pl.pieces import SHOWN, Mistake, UnusableError, cut, is_utf8, read_piece

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

RULES = ["normalization", "max_word_length", "encoding", "column", "skip_bad_lines"]
"""The options of `read_pieces` that say what the words of a list are."""

STREAM = "<stdin>"
"""The path that a checkpoint keeps for a list that was read from a pipe and cannot be read again."""

MOST_BAD = 1000
"""A list with more bad lines is not read to its end."""

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


def read_words(
    path: str | Path,
    normalization: Normalization = "NFC",
    max_word_length: int = 1000,
    changed: Counter[str] | None = None,
    **rules: Any,
) -> list[str]:
    """Reads all words of a list; the options are those of `read_pieces`.

    Raises:
        ValueError: as `read_pieces`, or if there is no word.
    """
    return join_pieces(path, read_pieces(path, 0, 1, normalization, max_word_length, changed, **rules))


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
    encoding: str = "utf-8",
    column: int | str | None = None,
    skip_bad_lines: bool | None = None,
) -> Iterator[list[str]]:
    """Reads a list of words, one a line or in a column of a table, piece by piece: it may be larger than memory.

    Blank lines, and the space around a word, are dropped.

    Args:
        path: the list; `-` for stdin.
        rank: the number of this reader among several; each reads some of the pieces and skips the others.
        world_size: the number of readers.
        normalization: the Unicode form that the words are put into; `none` leaves them as they are.
        max_word_length: the most characters of a word.
        changed: counts the words that differ from their lines, the blank lines, and the bad ones.
        encoding: of the list.
        column: the column that holds the words, by its number, or by its name in the header.
        skip_bad_lines: whether lines that cannot be used are dropped; None as false, where the user has no such flag.

    Yields:
        The words of each piece, possibly none.

    Raises:
        ValueError: if the file cannot be read, or holds invalid bytes, a control character or a word that is too long.
    """
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r}: cannot read this word list (its name holds a NUL)")
    changed = Counter() if changed is None else changed
    decoded = None if column is None and is_utf8(encoding) else encoding
    split = partial(split_piece, normalization=normalization, max_word_length=max_word_length, encoding=decoded)
    is_tsv = Path(path).suffix.lower() in (".tsv", ".tab")
    shown, bad = list[str](), 0
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else _open(Path(path)) as file:
            for piece in cut(file, rank, world_size, encoding, column, is_tsv):
                words, number, mistakes = read_piece(piece, split, changed, None if skip_bad_lines else MOST_BAD + 1)
                shown += mistakes[: SHOWN - len(shown)]
                bad += number
                if not bad or skip_bad_lines:
                    yield words
                elif bad > MOST_BAD:
                    break
    except OSError as error:
        raise ValueError(f"{path}: cannot read this word list ({error.strerror})") from None
    except UnicodeError as error:
        raise ValueError(f"{path}: is not {encoding} ({error}); name its encoding (--data.encoding)") from None
    except UnusableError as error:
        raise ValueError(f"{path}: {error}") from None
    if bad and skip_bad_lines:
        changed["bad"] += bad
    elif bad:
        count = f"; {'over ' * (bad > MOST_BAD)}{min(bad, MOST_BAD):,} bad lines in all" if bad > 1 else ""
        remedy = f" (--data.skip_bad_lines omits {'them' if bad > 1 else 'it'})" if skip_bad_lines is False else ""
        raise ValueError(f"{path}, {'; '.join(shown)}{count}{remedy}")


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
    raw: bytes,
    is_first: bool,
    normalization: Normalization,
    max_word_length: int,
    changed: Counter[str],
    encoding: str | None = None,
) -> list[str]:
    """Returns the words of some whole lines. Rare cases are looked for in the text as a whole, which is fast.

    Args:
        raw: the lines, in UTF-8.
        is_first: whether the list begins here, possibly with a byte order mark.
        normalization: as in `read_pieces`, like the others.
        max_word_length: as there.
        changed: as there.
        encoding: from which the lines were decoded, as `Piece` says; None if they are those of the list.

    Raises:
        Mistake: if the lines cannot be used.
    """
    try:
        text = raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        if encoding is not None:
            byte = ord(raw[error.start : error.start + 3].decode("utf-8", "surrogatepass")) & 0xFF
        message = f"0x{byte:02x} is not {encoding or 'UTF-8'}; save the list as UTF-8, or name its --data.encoding"
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
        what = "a tab inside a word; expected one word a line (--data.column takes one column of a table)"
        raise Mistake(_place(wrong, text, raw), what)
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
