"""The bytes of a list -> pieces of whole lines in UTF-8: as they are, from another encoding, or a column of a table.

Lines that cannot be used are found here; what makes them so is said in wordlist.py.
"""

import codecs
import csv
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import chain, islice
from typing import BinaryIO, TextIO

PIECE = 2**24
"""Bytes of a list that are read at a time: a few million words. In another encoding, characters."""

LONGEST_LINE = 2**24
"""The most bytes of a line, including the space around its word: a longer one is not read to its end."""

SHOWN = 3
"""The bad lines that an error names; it counts the others."""

ROWS = 2**18
"""Rows of a table that are read at a time."""


class UnusableError(Exception):
    """A list that cannot be read to its end."""


def too_long() -> UnusableError:
    """Makes the error about a line that is not read to its end."""
    return UnusableError(f"a line over {LONGEST_LINE:,} bytes; expected one word a line")


class Mistake(Exception):
    """A mistake in a piece of a list.

    Args:
        place: the byte of the piece at which it is.
        message: the mistake.
    """

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place


Split = Callable[..., list[str]]
"""Lines -> words, by the rules of a list: takes the lines, whether they are the first, and a counter `changed`."""


@dataclass
class Piece:
    """Some whole lines of a list.

    Attributes:
        raw: the lines, in UTF-8. A byte that the encoding of the list does not have is a lone surrogate (PEP 383).
        is_first: whether the list begins here, possibly with a byte order mark.
        line: the number of its first line; None if unknown.
        byte: the place of its first byte; None if unknown.
        numbers: the number of each of its lines, if they do not follow each other.
        mistakes: rows of a table that gave no line: the number of the row's last line, and what is wrong.
    """

    raw: bytes
    is_first: bool = False
    line: int | None = None
    byte: int | None = None
    numbers: list[int] | None = None
    mistakes: list[tuple[int, str]] = field(default_factory=list)

    def where(self, place: int) -> tuple[int, str]:
        """Describes a place, a byte of `raw`, by its line and byte in the list; and gives a number to sort it by."""
        before = self.raw.count(b"\n", 0, place)
        line = self.numbers[before] if self.numbers is not None else self.line and self.line + before
        parts = [] if line is None else [f"line {line:,}"]
        parts += [] if self.byte is None else [f"byte {self.byte + place:,}"]
        return line or place, ", ".join(parts)


def is_utf8(encoding: str) -> bool:
    """Whether this is a name of UTF-8, with a byte order mark or without."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def require_encoding(encoding: str) -> None:
    """Checks the name of an encoding.

    Raises:
        ValueError: if there is none of that name for text.
    """
    try:
        with suppress(UnicodeError):  # no text in it, but a name
            b"a".decode(encoding)
    except (LookupError, ValueError):
        raise ValueError(f"encoding is {encoding}: expected a name such as utf-8, latin-1, cp1252 or utf-16") from None


def require_column(column: int | str | None) -> None:
    """Checks that the number of a column is 1 or more.

    Raises:
        ValueError: if not.
    """
    if column == "" or (isinstance(column, int) and column < 1):
        raise ValueError(f"column is {column!r}: expected a name in the header, or a number from 1 on")


def cut(
    file: BinaryIO, rank: int, world_size: int, encoding: str, column: int | str | None, is_tsv: bool
) -> Iterator[Piece]:
    """Cuts a list into pieces.

    Args:
        file: the list.
        rank: the number of this reader among several; each reads some of the pieces and skips the others.
        world_size: the number of readers.
        encoding: of the list.
        column: the name or number of the column that holds the words; None for a list that is no table.
        is_tsv: whether tabs separate the columns, whatever the first line holds.

    Yields:
        The pieces of this reader.

    Raises:
        UnusableError: if a line is longer than `LONGEST_LINE`, there is no such column, or it looks like UTF-16.
        UnicodeDecodeError: if the encoding is not that of the list, and the wrong bytes cannot be told.
    """
    if column is None and is_utf8(encoding):
        yield from _cut_bytes(file, rank, world_size)
        return
    name = "utf-8-sig" if is_utf8(encoding) else encoding
    text = TextIOWrapper(file, name, errors="surrogateescape", newline="\n")
    try:
        pieces = _cut_text(text) if column is None else _cut_table(text, column, is_tsv)
        # Where a piece begins is known only from those before it: every reader reads all.
        yield from (piece for number, piece in enumerate(pieces) if number % world_size == rank)
    finally:
        with suppress(ValueError):  # closed already
            text.detach()  # stdin stays open


def _cut_bytes(file: BinaryIO, rank: int, world_size: int) -> Iterator[Piece]:
    number = lines = offset = 0
    while True:
        if number % world_size == rank:
            raw = file.read(PIECE) + file.readline(LONGEST_LINE)
            if not raw:
                return
            if len(raw) >= PIECE + LONGEST_LINE:
                raise too_long()
            if number == 0 and (raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or raw[:2].count(0) == 1):
                raise UnusableError("this looks like UTF-16; save the list as UTF-8, or --data.encoding utf-16")
            yield Piece(raw, number == 0, lines + 1 if world_size == 1 else None, offset)
            lines += raw.count(b"\n")
            offset += len(raw)
        else:
            file.seek(PIECE, 1)
            if not file.readline(LONGEST_LINE):
                return
            offset = file.tell()
        number += 1


def _cut_text(file: TextIO) -> Iterator[Piece]:
    lines = 0
    while text := file.read(PIECE) + file.readline(LONGEST_LINE):
        if len(text) >= PIECE + LONGEST_LINE:
            raise too_long()
        raw = text.encode("utf-8", "surrogatepass")
        yield Piece(raw, lines == 0, lines + 1)
        lines += text.count("\n")


def _cut_table(file: TextIO, column: int | str, is_tsv: bool) -> Iterator[Piece]:
    """Reads a column by the standard library's csv, which knows quotes; a row may have several lines."""
    first = file.readline(LONGEST_LINE)
    delimiter = "\t" if is_tsv else next((each for each in "\t,;" if each in first), ",")
    reader = csv.reader(chain([first], _short_lines(file)), delimiter=delimiter, strict=True)
    if isinstance(column, int):
        place = column - 1
    else:
        header = [name.strip() for name in next(reader, [])]
        if column not in header:
            raise UnusableError(f"no column {column!r} in the header: {', '.join(header)[:200] or 'it is empty'}")
        place = header.index(column)
    is_last = False
    while not is_last:
        piece = Piece(b"", numbers=[])
        words: list[str] = []
        assert piece.numbers is not None
        for _ in range(ROWS):
            try:
                row = next(reader)
            except StopIteration:
                is_last = True
                break
            except csv.Error as error:
                piece.mistakes.append((reader.line_num, f"{error}; expected rows with their quotes closed"))
                continue
            if row and len(row) <= place:
                piece.mistakes.append((reader.line_num, f"no column {column!r}: this row has {len(row)}"))
            elif row and ("\n" in row[place] or "\r" in row[place]):
                piece.mistakes.append((reader.line_num, "a word of several lines"))
            else:
                words.append(row[place] if row else "")
                piece.numbers.append(reader.line_num)
        piece.raw = "".join(f"{word}\n" for word in words).encode("utf-8", "surrogatepass")
        yield piece


def _short_lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) >= LONGEST_LINE:
            raise too_long()
        yield line


def read_piece(
    piece: Piece, split: Split, changed: Counter[str], limit: int | None
) -> tuple[list[str], int, list[str]]:
    """Returns the words of a piece, the number of its bad lines, and in order what is wrong with the first of them.

    Args:
        piece: some lines.
        split: gives the words of lines, or raises a `Mistake`.
        changed: counts what `split` changes.
        limit: the number of bad lines that is enough; there are no words then. None to find all.
    """
    mistakes = [(line, f"line {line:,}: {what}") for line, what in piece.mistakes[:SHOWN]]
    raw, good, end, counts = piece.raw, list[bytes](), 0, Counter[str]()
    try:
        words = split(raw, piece.is_first, changed=counts)
    except Mistake:
        words, counts = [], Counter()
        for start, stop, mistake in islice(bad_lines(raw, piece.is_first, split), limit):
            if len(good) < SHOWN:  # to count the lines before each would take long
                line, where = piece.where(mistake.place)
                mistakes.append((line, f"{where}: {mistake}"))
            good.append(raw[end:start])
            end = stop
        if limit is None or len(good) < limit:
            words = split(b"".join([*good, raw[end:]]), piece.is_first, changed=counts)
    changed.update(counts)
    return words, len(piece.mistakes) + len(good), [what for _, what in sorted(mistakes)[:SHOWN]]


def bad_lines(raw: bytes, is_first: bool, split: Split) -> Iterator[tuple[int, int, Mistake]]:
    """Finds the lines that `split` does not accept, by halves: most lists have none or few.

    Yields:
        The bytes at which the line begins and ends, and its mistake, at a place in `raw`.
    """
    parts = [(0, len(raw))]
    while parts:
        start, stop = parts.pop()
        try:
            split(raw[start:stop], is_first and start == 0, changed=Counter())
        except Mistake as mistake:
            half = (start + stop) // 2
            middle = raw.rfind(b"\n", start, half) + 1 or raw.find(b"\n", half, stop - 1) + 1
            if middle:
                parts += [(middle, stop), (start, middle)]
            else:
                yield start, stop, Mistake(start + mistake.place, str(mistake))
