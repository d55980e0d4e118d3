"""Text for a terminal: commands quoted for its shell, control characters escaped, numbers with their noun."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

MOST_SHOWN = 100
"""The most characters of an alphabet that a message shows whole."""


def command_line(*words: str | Path) -> str:
    """Joins words into a command for the shell of this system, to be pasted.

    Args:
        words: a `Path` is named from the current folder, and never taken for a flag.
    """
    named = [os.path.relpath(word) if isinstance(word, Path) else word for word in words]
    dashed = [isinstance(word, Path) and name.startswith("-") for word, name in zip(words, named, strict=True)]
    safe = [f".{os.sep}{name}" if dash else name for name, dash in zip(named, dashed, strict=True)]
    return subprocess.list2cmdline(safe) if os.name == "nt" else shlex.join(safe)


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: `1 word`, `2,000 words`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def four_digits(loss: float) -> str:
    """Returns a loss with four digits after the point, or a very large one in short: `2.0886`, `4.85e+08`."""
    return f"{loss:.4f}" if loss < 1e5 else f"{loss:.3g}"


def printable(line: str) -> str:
    """Escapes control characters, which could move a terminal's cursor: a line may quote a file or a flag."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def brief(value: Any, other: Any = "") -> str:
    """Quotes an alphabet, or a plain value, for a message; of a long alphabet the first twenty that `other` has not."""
    if not isinstance(value, str) or len(value) <= MOST_SHOWN:
        return repr(value)
    shown = "".join([character for character in value if character not in str(other)][:20]) or value[:20]
    return f"{shown!r} and {len(value) - len(shown):,} others"
