"""Text for a terminal: commands quoted for its shell, control characters escaped, numbers with their noun."""

import os
import shlex
import subprocess
from pathlib import Path


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


def printable(line: str) -> str:
    """Escapes control characters, which could move a terminal's cursor: a line may quote a file or a flag."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)
