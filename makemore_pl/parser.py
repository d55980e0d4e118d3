"""How the command line speaks: help that opens with what matters, and mistakes answered in one line."""

import contextlib
import difflib
import io
import os
import re
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, get_loader, set_loader, set_parsing_settings  # type: ignore[attr-defined]
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser

from makemore_pl import __version__
from makemore_pl.shipped import recipes

CLASSES = [f"lightning.pytorch.{kind}" for kind in ("accelerators", "callbacks", "loggers", "plugins", "profilers")]
CLASSES += ["lightning.pytorch.strategies", "lightning.fabric.plugins", "makemore_pl", "torchmetrics"]
"""Where the classes come from that a config may name. All of torch would not do: some of it runs commands."""

set_parsing_settings(
    add_print_completion_argument=True,
    config_read_mode_fsspec_enabled=False,  # Lightning has it fetch configs from anywhere
    config_read_mode_urls_enabled=False,
    import_path_denylist=["*"],
    import_path_allowlist=CLASSES,
    instantiate_subclass_spec_in_any=False,  # else any class would do where any value does
)

load_yaml = get_loader("yaml")


def load_plain(text: str) -> Any:
    """Reads YAML that means no more than it says: a few aliases could stand for more than fits into any memory."""
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken; write out what they stand for")
        if depth > 100:
            raise yaml.YAMLError("more than a hundred lists or groups inside of each other")
    return load_yaml(text)


set_loader("yaml", load_plain, (yaml.YAMLError,))

COMMANDS = {
    "fit": "train on a list of words, then print new ones",
    "predict": "print new words, or score given ones",
    "validate": "loss, perplexity and accuracy on the words held out for choosing",
    "test": "the same on the words held out to the end",
    "lr_find": "look for a learning rate: the lecture's sweep",
    "export": "write a page to play with, ONNX or safetensors",
}

RECIPES = ", ".join(recipes())
"""The names of the recipes."""

NEWEST = "  --ckpt_path FILE              a checkpoint; the newest run's best if left out\n"

OPENINGS = {
    "fit": """Trains on a list of words, then prints new ones. The flags that matter most:

  --data.path FILE              your own list, a word a line; `-` for stdin
  --config NAME                 a recipe, such as lecture; or a YAML file
  --ckpt_path last              go on with the newest run; or begin with a file
  --model.block_size N          how many characters the model looks back
  --model.hidden_size N         units of the tanh layer
  --model.embedding_dim N       numbers that stand for a character
  --model.lr X                  the learning rate (lr_find looks for one)
  --model.optimizer sgd         as in the lecture, in place of AdamW
  --data.batch_size N           minibatches in place of all windows at once
  --trainer.max_steps N         how long to train
  --trainer.accelerator gpu     where; also --trainer.devices, .precision
  --pictures false              less in TensorBoard
""",
    "predict": "Prints new words; it needs no list. The flags that matter most:\n\n"
    + NEWEST
    + """  --sample.num_names N          how many
  --sample.prompt TEXT          how each begins
  --sample.temperature X        below 1 tame, above 1 daring
  --sample.top_k N              from the N likeliest characters alone
  --sample.top_p X              from those that share X of the probability
  --sample.min_length N         also --sample.max_length
  --sample.unique               none twice
  --sample.novel                none that stands in the list
  --sample.format jsonl         or csv: log-probability and where it stands
  --sample.output FILE          a file in place of stdout
  --sample.score FILE           how likely are these words? `-` for stdin
""",
    "validate": "Prints loss, perplexity and accuracy on the words held out for choosing.\n\n" + NEWEST,
    "test": "Prints loss, perplexity and accuracy on the words held out to the end.\n\n" + NEWEST,
    "lr_find": """Trains for a moment at learning rates from 0.001 to 1 and says which to take.
All flags of fit's model and data apply:

  --data.path FILE              your own list
  --config NAME                 a recipe, such as lecture; or a YAML file
  --num_steps N                 how many learning rates to try
""",
    "export": "Writes a checkpoint in another form.\n\n"
    + NEWEST
    + """  --output playground.html      a page to play with: one file, no network
  --output model.onnx           for ONNX runtimes
  --output model.safetensors    the five tensors
  --output mean.ckpt            a checkpoint to sample from and to test
  --average [FILE, ...]         further checkpoints: the mean of all
""",
}


LONGEST_ERROR = 2000
"""Characters of an error that are said: it may quote a file, and there is no end to that."""


def open_streams() -> None:
    """Opens what of stdin, stdout and stderr is closed (`<&-`), to nowhere: else the next file would take its place."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, "w" if descriptor else "r"))
    write_utf8()


def write_utf8() -> None:
    """Has stdout take UTF-8 whatever the locale: names may hold any character, and lists are read as UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


@rank_zero_only
def say(line: str) -> None:
    """Tells the user something on stderr; stdout is for predictions."""
    print(printable(line), file=sys.stderr, flush=True)


def printable(line: str) -> str:
    """Escapes what would move a terminal's cursor, or worse: a line may quote a file or a flag."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def fail(error: object) -> NoReturn:
    """Ends the program with one line on stderr and exit status 2."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        error = f"{error.filename}: {error.strerror.lower()}"
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once a machine: another one's list may be another
        print(printable("error: " + explain(str(error)))[:LONGEST_ERROR], file=sys.stderr, flush=True)
    sys.exit(2)


class RecipeFile(ActionConfigFile):
    """`--config`: a YAML file, or the name of a recipe that comes with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = recipes().get(values)
        taken = str(path) if path is not None and not Path(values).is_file() else values
        super().__call__(parser, cfg, taken, option_string)  # type: ignore[no-untyped-call]


class Parser(LightningArgumentParser):
    """Answers a mistake in one line, and knows which subcommand it parses.

    Args:
        command: the name of the subcommand; empty for the parser above them, None for one that has none.
    """

    parsers: ClassVar[dict[str, "Parser"]] = {}
    subject: ClassVar[str] = ""

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        if command is not None:
            kwargs["usage"] = f"makemore_pl {command or 'COMMAND'} [--flag value ...]"
            self.parsers[command] = self
        if command == "":
            kwargs["version"] = __version__
        super().__init__(*args, **kwargs)
        self.command = command

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("action") is ActionConfigFile:
            kwargs |= {"action": RecipeFile, "metavar": "NAME", "help": f"a recipe: {RECIPES}; or a YAML file"}
        return super().add_argument(*args, **kwargs)

    def allow_bare_switches(self) -> None:
        """Lets `--sample.unique` stand for `--sample.unique true`."""
        for action in self._actions:
            if getattr(action, "_typehint", None) in (bool, bool | None):
                action.nargs, action.const = "?", True

    def format_help(self, *args: Any) -> str:
        """Puts what matters before the hundred flags that Lightning has."""
        usage, _, rest = super().format_help(*args).partition("\n")
        if self.command is None:
            return f"{usage}\n{rest}"
        if self.command:
            return f"{usage}\n\n{OPENINGS[self.command]}\nAll flags:\n{rest.partition('options:')[2]}"
        commands = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
        options = rest.partition("options:")[2].partition("subcommands:")[0]
        more = "`makemore_pl fit --help` lists the flags of a command. It is `python -m makemore_pl`, too."
        return f"{usage}\n\nMore words like yours.\n\n{commands}\n\noptions:{options}{more}\n"

    @classmethod
    @contextlib.contextmanager
    def about(cls, subject: str) -> Iterator[None]:
        """Has mistakes begin with what they are found in, where that is not the command line."""
        cls.subject = subject
        try:
            yield
        finally:
            cls.subject = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self.subject:
            fail(f"{self.subject} ({' '.join(message.split())})")
        flags = {name: parser._option_string_actions for name, parser in self.parsers.items()}
        command = next((word for word in sys.argv[1:] if word in flags), "")
        if self.command is not None and (match := re.match(r"unrecognized arguments: (--[^\s=]+)", message)):
            others = [name for name in flags if name and match[1] in flags[name]]
            if others:
                fail(f"{match[1]} is a flag of {_either(others)}, not of {command}")
        ours = self._option_string_actions
        fail(explain(message, ours if self.command is None else flags.get(command, ours)))


def trust(words: Sequence[str]) -> None:
    """Lets configs name classes of the modules that the command line trusts: `--trust my_callbacks`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--trust", action="append", default=[])
    with contextlib.suppress(ArgumentError):  # said again by the real parser
        set_parsing_settings(import_path_allowlist=parser.parse_known_args(words)[0].trust)


def explain(message: str, flags: Iterable[str] = ()) -> str:
    """Says in plain words what jsonargparse found wrong.

    Args:
        message: its message.
        flags: those that there are, among which to look for the one that was meant.
    """
    message = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: (-\S+)", message):
        return f"unknown flag {match[1]}{did_you_mean(match[1], flags) or '; --help lists them'}"
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        return f"unexpected {match[1]}: every value follows a flag; --help lists them"
    if match := re.match(r"argument subcommand: invalid choice: '(.*)' \(choose", message):
        return f"unknown command {match[1]}{did_you_mean(match[1], COMMANDS) or f': expected {_either(COMMANDS)}'}"
    if message.startswith('expected "subcommand"'):
        return f"no command: expected {_either(COMMANDS)}"
    if match := re.match(r"the following arguments are required: \w+\.(\S+)", message):
        return f"--{match[1]} is missing; --help says what it is for"
    if match := re.match(r"argument (?:-c/)?--config: expected one argument", message):
        return f"--config: expected a YAML file or a recipe: {RECIPES}"
    if match := re.match(r"argument (--\S+): expected one argument", message):
        return f"{match[1]}: expected a value after it"
    if match := re.search(r"""(?:Path|File) does not exist: '([^']*://[^']*)'""", message):
        return f"{match[1]}: this is an address, and nothing is fetched; download it and name the file"
    if match := re.match(r"argument (\S+) --> (\S+): ", message):
        return f"--{match[2]}: the checkpoint has its own; leave the flag out"
    if match := re.match(r"Subcommand '(\w+)' does not accept option '(\S+)'", message):
        return f"--config: {match[1]} has no {match[2]}; take it out of the file, which is of another command"
    if match := re.match(r"Option '(\S+)' is not accepted before subcommand '(\w+)'", message):
        return f"--config with {match[1]} belongs after {match[2]}: makemore_pl {match[2]} --config FILE"
    if match := re.match(r'Key "(\w+)\.\w+" not found in namespace', message):
        return f"--config: {match[1]} is null: expected names with values"
    if "codec can't decode" in message or message.startswith("Unexpected config"):
        return f"--config: not a recipe in YAML ({message})"
    if match := re.search(r"Timer\(duration='(.*)'\)` is not a valid", message):
        return f"--trainer.max_time {match[1]}: expected DD:HH:MM:SS"
    if match := re.search(r"invalid strategy name: `strategy='(.*)'`", message):
        return f"--trainer.strategy {match[1]}: expected auto, ddp, ddp_spawn, fsdp or another of Lightning's"
    if match := re.search(r"invalid accelerator name: `accelerator='(.*)'`. Available names are: (.*)\.", message):
        return f"--trainer.accelerator {match[1]}: expected {_either(['gpu', *match[2].split(', ')])}"
    if match := re.match(r'Parser key "config": File does not exist: \'(.*)\'', message):
        return f"--config {os.path.relpath(match[1])}: no such file, and no recipe of that name; there are {RECIPES}"
    if match := re.match(r"Problems parsing config: (.*)", message):
        return f"--config: {match[1]}"
    if match := re.search(r"Importing '(\S+)' is not allowed", message):
        return f"{match[1]}: a config cannot have that imported; if you trust it, --trust {match[1].partition('.')[0]}"
    if match := re.match(r'Parser key "([^"]*)": Unable to load config \'([^\']*)\'', message):
        return f"--{match[1]} {match[2]}: no such file"
    if match := re.match(r'Linked "([^"]*)" must be given via "([^"]*)"', message):
        return f"--{match[1]}: say it with --{match[2]}"
    if match := re.match(r'Parser key "([^"]*)": (.*)', message):
        key, rest = match.groups()
        value = re.search(r"(?:Got value|Given value): ?(.*)$", rest)
        types = re.findall(r"Expected an? (<class '[^']*'>|typing.Literal\[[^]]*\]|dot import path)", rest)
        if value is not None and types:
            return (
                f"{f'--{key} {value[1]}'.strip()}: expected {_either(name for type in types for name in _names(type))}"
            )
        return f"--{key}: {rest}"
    return message


def name_flag(message: str) -> str:
    """Says `--model.lr -1: expected ...` on the command line where Python says `lr is -1: expected ...`."""
    command = next((Parser.parsers[word] for word in sys.argv[1:] if word in Parser.parsers), None)
    if command is None or not (match := re.match(r"(\w+) is (\S+): expected ", message)):
        return message
    flags = [flag for flag in command._option_string_actions if _end(flag) == match[1]]
    return f"{flags[0]} {match[2]}: expected {message[match.end() :]}" if flags else message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Names what was probably meant; empty if nothing is near."""
    word = word.partition("=")[0]
    # Flags are compared by their last part: the first ones have much in common.
    ends: dict[str, list[str]] = {}
    for name in known:
        ends.setdefault(_end(name), []).append(name)
    near = difflib.get_close_matches(_end(word), ends, 1, 0.65)
    found = difflib.get_close_matches(word, ends[near[0]], 1 if "." in word else 2, 0) if near else []
    return f": did you mean {_either(found)}?" if found else ""


def _end(flag: str) -> str:
    return flag.lstrip("-").rpartition(".")[2].replace("-", "_")


def _names(type_: str) -> list[str]:
    """What a user calls a type."""
    if match := re.match(r"typing\.Literal\[(.*)\]", type_):
        return match[1].replace("'", "").split(", ")
    name = re.sub(r"<class '(.*)'>", r"\1", type_).rpartition(".")[2]
    names = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null"}
    return [names.get(name, "a list" if name in ("list", "Iterable") else "a class")]


def _either(names: Iterable[str]) -> str:
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} or {last}" if most else last
