"""A list of words, one a line or in a column of a table -> the words -> train, validation and test."""

import csv
import random
import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from io import StringIO
from pathlib import Path

# Printed, these change the lines around them: control characters, separators of lines, embeddings, overrides and
# isolates of direction. Surrogates are no characters.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# gzip, bzip2, xz, zstd and zip, which a workbook is as well.
COMPRESSED = b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
# A first line that is likelier the name of a column than a word.
HEADER = re.compile(r"(\w+[ _-])?(names?|words?|titles?|labels?|towns?|city|cities|text)", re.IGNORECASE)


def read_words(path: str | Path, encoding: str = "utf-8", column: int | str | None = None) -> list[str]:
    """Reads a list of words, without blank lines and the space around a word.

    An e and an accent become the one character é (Unicode's NFC).

    Args:
        path: the list; `-` for stdin.
        encoding: of the list. A byte order mark of UTF-8 is dropped.
        column: of a table, the column that holds the words: its name in the first row, or its number, from 1 on.

    Raises:
        ValueError: if the list cannot be read or has no words, or a word has a control character.
    """
    text = unicodedata.normalize("NFC", _read(path, encoding)).replace("\r\n", "\n").replace("\r", "\n")
    # Not splitlines, which also cuts at form feeds, U+0085 and U+2028.
    lines = text.split("\n") if column is None else _column(text, column, path)
    words = [word for line in lines if (word := line.strip())]
    if not words:
        raise ValueError(f"{path}: no words in this list; expected one a line")
    if found := UNPRINTABLE.search("".join(words)):  # all at once: far faster than word by word
        word = next(word for word in words if found[0] in word)
        option = "the column of the words (--data.column)" if found[0] == "\t" else "the list's --data.encoding"
        raise ValueError(f"{path}: control character {found[0]!r} in {word[:80]!r}; delete it, or name {option}")
    if len(words) == 1 and (hint := looks_like(words)):
        raise ValueError(f"{path} {hint}")
    return words


def _read(path: str | Path, encoding: str) -> str:
    try:
        raw = _stdin() if str(path) == "-" else Path(path).read_bytes()
        if raw.startswith(COMPRESSED):
            raise ValueError(
                f"{path} is compressed, or a workbook; unpack it, or save its sheet as CSV and name the --data.column"
            )
        return raw.decode(encoding).removeprefix("\ufeff")
    except OSError as error:
        raise ValueError(f"{path}: cannot read this list ({error.strerror})") from None
    except LookupError:
        raise ValueError(f"encoding is {encoding}: expected a name such as utf-8, latin-1, cp1252 or utf-16") from None
    except UnicodeDecodeError as error:
        line = len(re.findall("\r\n?|\n", raw[: error.start].decode(encoding, "ignore"))) + 1
        raise ValueError(
            f"{path}, line {line:,}: byte 0x{raw[error.start]:02x} is not {encoding}; "
            "save the list as UTF-8, or name its encoding (--data.encoding, such as latin-1, cp1252 or utf-16)"
        ) from None


@cache
def _stdin() -> bytes:
    """Reads stdin once, and keeps it: `fit` looks at a list before it trains on it."""
    return sys.stdin.buffer.read()


def _column(text: str, column: int | str, path: str | Path) -> list[str]:
    """Returns the cells of a column of a table."""
    if isinstance(column, int) and column < 1:
        raise ValueError(f"column is {column}: expected a name in the first row, or a number from 1 on")
    delimiter = next((each for each in "\t,;" if each in text.split("\n", 1)[0]), "\t")
    reader = csv.reader(StringIO(text), delimiter=delimiter, strict=True)
    try:
        if isinstance(column, str):
            header = [name.strip() for name in next(reader, [])]
            if column not in header:
                raise ValueError(f"{path}: no column {column!r} in the first row: {', '.join(header)[:200]}")
            column = header.index(column) + 1
        return [row[column - 1] for row in reader if row]
    except IndexError:
        raise ValueError(f"{path}, line {reader.line_num:,}: this row has no column {column}") from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num:,}: {error}; fix the quotes of this row") from None


def looks_like(words: Sequence[str]) -> str:
    """Says what a list looks like and what to do, if its first words do not look like words; otherwise ""."""
    words = words[:1000]
    if all(word[0] in '[]{}"' for word in words):
        return "looks like JSON; write its words one a line, without quotes"
    if len(words) == 1:
        between = next((each for each in ",;| " if words[0].count(each) > 2), "")
        return f"looks like words on one line; write one a line (tr '{between}' '\\n')" if between else ""
    for delimiter, name in [(",", "commas"), (";", "semicolons")]:
        if all(delimiter in word for word in words):
            return f"looks like a table with {name}; name the column of the words (--data.column 1, or its name)"
    if HEADER.fullmatch(words[0]):
        return f"begins with {words[0]!r}, as the header of a column would; drop it with --data.column {words[0]!r}"
    return ""


def split_words(
    words: Sequence[str], train_fraction: float = 0.8, val_fraction: float = 0.1, seed: int = 42
) -> tuple[list[str], list[str], list[str]]:
    """Shuffles the words and cuts them into train, validation and test (the lecture's 80/10/10).

    Raises:
        ValueError: if the shares are out of range, or leave no word to train or validate on.
    """
    both = round(train_fraction + val_fraction, 9)  # 0.7 + 0.1 is a little less than 0.8
    if not (0 < train_fraction <= 1 and val_fraction >= 0 and both <= 1):
        raise ValueError(
            f"train_fraction {train_fraction:g}, val_fraction {val_fraction:g}: expected shares of 1 in all"
        )
    shuffled = list(words)
    random.Random(seed).shuffle(shuffled)
    n1, n2 = int(train_fraction * len(words)), int(both * len(words))
    train, val, test = shuffled[:n1], shuffled[n1:n2], shuffled[n2:]
    if not train or (val_fraction and not val):
        raise ValueError(
            f"{len(words)} words leave none to train or to validate on; add words, or train on all "
            "(--data.train_fraction 1 --data.val_fraction 0)"
        )
    return train, val, test


def shipped(name: str) -> Path:
    """Finds a file or folder that comes with the package: inside an installed one, beside it in a checkout."""
    inside = Path(__file__).with_name(name)
    return inside if inside.exists() else inside.parent.with_name(name)
