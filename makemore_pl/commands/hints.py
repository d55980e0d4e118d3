"""Lists that are no lists of words: what they look like, and how to make a list of them."""

import csv
import json
import re
from collections.abc import Sequence

LINES = 1000
"""The first lines, which are looked at."""


def looks_like(words: Sequence[str]) -> str:
    """Names the format that every word, a line of its list, looks like, and a remedy; empty if there is none.

    Args:
        words: the first of a list, as they are read without a column.
    """
    if len(words) < 2:
        return ""
    if any(word.startswith("#!comment:") for word in words):
        return "one of John the Ripper; drop the lines that begin with #!comment"
    if words[0].isdecimal() and any("/" in word for word in words) and all(map(is_hunspell, words[1:])):
        return "a hunspell dictionary; drop its first line, and in each line the slash and what follows it"
    if all(map(is_json, words)):
        return "JSON; write its words one a line, without quotes"
    for delimiter, name in [(",", "commas"), (";", "semicolons")]:
        if all(delimiter in word for word in words):
            rows = list(csv.reader(words, delimiter=delimiter))
            if len({len(row) for row in rows}) == 1:
                return f"a table with {name}; --data.column 1 takes its first column, a name the one with that header"
    return ""


def is_hunspell(line: str) -> bool:
    """Whether a line is a word with or without flags and morphological fields."""
    return re.fullmatch(r"[^/\s]+(/\S+)?(\s+\w\w:\S+)*", line) is not None


def is_json(line: str) -> bool:
    """Whether a line is a bracket, a string, an object or a list of JSON, or `"name": value`."""
    line = line.removesuffix(",")
    if line in ("[", "]", "{", "}", "[]", "{}"):
        return True
    if line[:1] not in ('"', "{", "["):
        return False
    # A value, or a part of an object: `"name": value`, `"name": [`, `"name": {`.
    for end in ("", "}", "]}", "}}"):
        try:
            json.loads(f"{{{line}{end}" if end else line)
            return True
        except (ValueError, RecursionError):
            pass
    return False
