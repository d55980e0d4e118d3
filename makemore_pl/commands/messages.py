"""Lines on stderr, and the wording of mistakes: one line each."""

import difflib
import io
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from lightning.fabric.utilities.rank_zero import rank_zero_only

from makemore_pl.commands.help import COMMANDS, RECIPES
from makemore_pl.terminal import printable

LONGEST_ERROR = 2000
"""The most characters of an error that are printed: it may quote a file of any length."""

MEANT = {
    **dict.fromkeys(["epochs", "max_epochs", "num_epochs"], "--trainer.max_epochs"),
    **dict.fromkeys(["lr", "learning_rate", "l"], "--model.lr"),
    **dict.fromkeys(["batch_size", "b"], "--data.batch_size"),
    **dict.fromkeys(["input_file", "i"], "--data.path"),
    **dict.fromkeys(["weight_decay", "w"], "--model.weight_decay"),
    **dict.fromkeys(["n_hidden", "n_embd2"], "--model.hidden_size"),
    **dict.fromkeys(["work_dir", "o"], "--trainer.default_root_dir"),
    **dict.fromkeys(["trainer.gpus", "gpus", "device"], "--trainer.accelerator gpu"),
    "n_embd": "--model.embedding_dim",
    "resume": "--ckpt_path last",
    "model.class_path": "--model_class",
}
"""Flags of other programs, makemore.py among them, without their dashes, and their names here."""

COMMANDS_MEANT = {"train": "fit", "sample": "predict", "generate": "predict", "evaluate": "validate"}


def open_streams() -> None:
    """Opens the null device for a closed stdin, stdout or stderr (`<&-`): the next file would take its number."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, "w" if descriptor else "r"))
    write_utf8()


def write_utf8() -> None:
    """Sets stdout to UTF-8 in every locale: names may hold any character, and lists are read as UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


@rank_zero_only
def say(line: str) -> None:
    """Prints a line to stderr; stdout is for predictions."""
    print(printable(line), file=sys.stderr, flush=True)


def fail(error: object) -> NoReturn:
    """Ends the program with one line on stderr and exit status 2."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        error = f"{error.filename}: {error.strerror.lower()}"
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once per machine: the list of another may differ
        print(printable("error: " + explain(str(error)))[:LONGEST_ERROR], file=sys.stderr, flush=True)
    sys.exit(2)


def explain(message: str, flags: Iterable[str] = ()) -> str:
    """Rewords the commonest mistakes; other messages pass through in one line.

    Args:
        message: of jsonargparse.
        flags: of the command, among which the intended one is looked for.
    """
    message = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: (-\S+)", message):
        return f"unknown flag {match[1]}{did_you_mean(match[1], flags) or '; --help lists them'}"
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        if Path(match[1]).is_file():
            return f"unexpected {match[1]}: did you mean --data.path {match[1]}?"
        return f"unexpected {match[1]}: every value follows a flag; --help lists them"
    if match := re.match(r"argument subcommand: invalid choice: '(.*)' \(choose", message):
        meant = COMMANDS_MEANT.get(match[1], "")
        proposal = f": did you mean {meant}?" if meant else did_you_mean(match[1], COMMANDS)
        return f"unknown command {match[1]}{proposal or f': expected {either(COMMANDS)}'}"
    if message.startswith('expected "subcommand"'):
        return f"no command: expected {either(COMMANDS)}"
    if re.match(r"argument -c/--config: expected one argument", message):
        return f"--config: expected a YAML file, or a recipe: {RECIPES}"
    if match := re.search(r"Importing '(\S+)' is not allowed", message):
        name, logger = match[1], "lightning.pytorch.loggers"
        module = logger if name.startswith(logger) else name.partition(".")[0]
        return f"{name}: configs may not import it; if you trust it, add --trust {module}"
    if match := re.match(r"argument (\S+) --> (\S+): ", message):
        return f"--{match[2]}: the checkpoint has its own; omit the flag"
    if match := re.match(r'Parser key "([^"]*)": (.*)', message):
        key, rest = match.groups()
        value = re.search(r"(?:Got value|Given value): ?(.*)$", rest)
        types = re.findall(r"Expected an? (<class '[^']*'>|typing.Literal\[[^]]*\]|dot import path)", rest)
        if value is not None and types:
            flag = f"--{key} {value[1]}".strip()
            return f"{flag}: expected {either(name for each in types for name in plain_types(each))}"
        return f"--{key}: {rest}"
    return message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Proposes the flag or command that was probably meant; empty if none is near."""
    known, word = list(known), word.partition("=")[0]
    meant = MEANT.get(word.lstrip("-").replace("-", "_"), "")
    if meant.partition(" ")[0] in known:
        return f": did you mean {meant}?"
    # Flags are compared by their last part: the first parts have much in common.
    ends: dict[str, list[str]] = {}
    for name in known:
        ends.setdefault(last_part(name), []).append(name)
    near = difflib.get_close_matches(last_part(word), ends, 1, 0.65)
    found = difflib.get_close_matches(word, ends[near[0]], 1 if "." in word else 2, 0) if near else []
    return f": did you mean {either(found)}?" if found else ""


def last_part(flag: str) -> str:
    """Returns `batch_size` for `--data.batch-size`."""
    return flag.lstrip("-").rpartition(".")[2].replace("-", "_")


def plain_types(type_: str) -> list[str]:
    """Names a type, as jsonargparse prints it, in plain words."""
    if match := re.match(r"typing\.Literal\[(.*)\]", type_):
        return match[1].replace("'", "").split(", ")
    name = re.sub(r"<class '(.*)'>", r"\1", type_).rpartition(".")[2]
    names = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null"}
    return [names.get(name, "a list" if name in ("list", "Iterable") else "a class")]


def either(names: Iterable[str]) -> str:
    """Joins names: `a, b or c`."""
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} or {last}" if most else last
