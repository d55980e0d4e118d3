"""The parser: recipes by name, help that opens with the flags that matter, configs that import nothing."""

import contextlib
import re
import sys
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    get_loader,
    set_loader,
    set_parsing_settings,
)
from lightning.pytorch.cli import LightningArgumentParser

from makemore_pl import __version__
from makemore_pl.checkpoint import NOT_DOWNLOADED
from makemore_pl.commands.help import ALL, COMMANDS, OPENINGS, RECIPES
from makemore_pl.commands.messages import either, explain, fail
from makemore_pl.model import MLP
from makemore_pl.wordlist import shipped

CLASSES = [f"lightning.pytorch.{kind}" for kind in ("accelerators", "callbacks", "plugins", "profilers")]
LOGGERS = "CSVLogger", "TensorBoardLogger", "csv_logs", "tensorboard"
CLASSES += [f"lightning.pytorch.loggers.{name}" for name in LOGGERS]
CLASSES += ["lightning.pytorch.strategies", "lightning.fabric.plugins", "makemore_pl", "torchmetrics"]
"""The modules and classes that a config may name: no loggers of a service, and not torch, which can run commands."""

set_parsing_settings(
    add_print_completion_argument=True,
    config_read_mode_fsspec_enabled=False,  # Lightning lets configs be fetched from any address
    config_read_mode_urls_enabled=False,
    import_path_denylist=["*"],
    import_path_allowlist=CLASSES,
    instantiate_subclass_spec_in_any=False,  # otherwise any class would be accepted where any value is
)

load_yaml = get_loader("yaml")


def load_plain(text: str) -> Any:
    """Reads YAML without aliases and deep nesting: a few bytes of either can fill the memory."""
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; write the value out")
        if depth > 100:
            raise yaml.YAMLError("more than a hundred nested lists or groups")
    return load_yaml(text)


set_loader("yaml", load_plain, (yaml.YAMLError,))


class RecipeFile(ActionConfigFile):
    """`--config`: a YAML file, or the name of a recipe that comes with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        recipe = shipped("configs") / f"{values}.yaml"
        if not Path(values).exists():
            if "://" in values:
                fail(f"{values}{NOT_DOWNLOADED}")
            if not (re.fullmatch(r"\w+", values) and recipe.is_file()):
                fail(f"--config {values}: no such file or recipe; the recipes are {RECIPES}")
            values = str(recipe)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class Help(Action):
    """`--help`: the flags that matter most; `--help all`: all of them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values not in (None, "all"):
            fail(f"--help {values}: expected --help, or --help all")
        parser.helps_all = values == "all"
        parser.print_help()
        parser.exit()


class Parser(LightningArgumentParser):
    """A parser of one command, or of the program.

    Args:
        command: the name of the subcommand; empty for the program's parser, None for a program without any.
    """

    parsers: ClassVar[dict[str, "Parser"]] = {}
    trusted: ClassVar[list[str]] = []
    subject: ClassVar[str] = ""

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        if command is not None:
            kwargs["usage"] = f"makemore_pl {command or 'COMMAND'} [--flag value ...]"
            self.parsers[command] = self
        if command == "":
            kwargs["version"] = __version__
        super().__init__(*args, **kwargs | {"add_help": not command})
        self.command = command
        self.helps_all = False
        if command:
            text = "the flags that matter most; `--help all`: all flags"
            self.add_argument("-h", "--help", action=Help, nargs="?", metavar="all", default=SUPPRESS, help=text)

    def add_config(self) -> None:
        """Adds `--config`."""
        text = f"a recipe: {RECIPES}; or a YAML file"
        self.add_argument("-c", "--config", action=RecipeFile, metavar="NAME", help=text)

    def allow_bare_switches(self) -> None:
        """Accepts `--sample.unique` for `--sample.unique true`."""
        for action in self._actions:
            if getattr(action, "_typehint", None) in (bool, bool | None):
                action.nargs, action.const = "?", True

    def format_help(self, *args: Any) -> str:
        usage, _, rest = super().format_help(*args).partition("\n")
        if self.command is None:
            return f"{usage}\n{rest}"
        if self.command:
            flags = f"All flags:\n{rest.partition('options:')[2]}"
            return f"{usage}\n\n{OPENINGS[self.command]}\n{flags if self.helps_all else ALL.format(self.command)}"
        commands = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
        options = rest.partition("options:")[2].partition("subcommands:")[0]
        more = "`makemore_pl fit --help` lists the flags of a command. `python -m makemore_pl` is the same program."
        return f"{usage}\n\nMore words like yours.\n\n{commands}\n\noptions:{options}{more}\n"

    @classmethod
    @contextlib.contextmanager
    def about(cls, subject: str) -> Iterator[None]:
        """Begins the messages of mistakes with their source, where that is not the command line."""
        cls.subject = subject
        try:
            yield
        finally:
            cls.subject = ""

    @property
    def flags(self) -> list[str]:
        """The names of all flags."""
        own = ["-h", "--help", "-c", "--config", "--print_config", "--version"]
        names = list(self.get_defaults(skip_validation=True).keys())
        return own + [f"--{name}" for name in names]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self.subject:
            fail(f"{self.subject} ({' '.join(message.split())})")
        flags = {name: parser.flags for name, parser in self.parsers.items()}
        command = next((word for word in sys.argv[1:] if word in flags), "")
        if self.command is not None and (match := re.match(r"unrecognized arguments: (--[^\s=]+)", message)):
            others = [name for name in flags if name and match[1] in flags[name]]
            if others:
                fail(f"{match[1]} is a flag of {either(others)}, not of {command}")
        fail(explain(message, self.flags if self.command is None else flags.get(command, [])))


def trust(words: Sequence[str]) -> None:
    """Lets configs name classes of the modules that the command line trusts: `--trust my_callbacks`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--trust", action="append", default=[])
    with contextlib.suppress(ArgumentError):  # reported again by the real parser
        Parser.trusted = parser.parse_known_args(words)[0].trust
        set_parsing_settings(import_path_allowlist=Parser.trusted)


def model_class(words: Sequence[str]) -> type[MLP]:
    """Imports the class that `--model_class` names, on the command line or in a config; MLP if omitted.

    Raises:
        ValueError: if its module is not trusted, or it is not a subclass of MLP.
        OSError: if a config cannot be read.
        ImportError: if there is no such module.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--model_class", "--trust", "--config", "-c"):
        parser.add_argument(flag, action="append", default=[])
    try:
        known = parser.parse_known_args(words)[0]
    except ArgumentError:  # reported again by the real parser
        return MLP
    named = list(known.model_class)
    for config in (Path(name) for name in [*known.config, *known.c]):
        if not named and config.is_file():
            with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):  # reported again by the real parser
                content = load_plain(config.read_text(encoding="utf-8"))
                named = [content["model_class"]] if isinstance(content, dict) and content.get("model_class") else []
    if not named:
        return MLP
    module, _, name = str(named[-1]).rpartition(".")
    root = module.partition(".")[0]
    if root not in known.trust:
        raise ValueError(f"--model_class {named[-1]}: not imported; if you trust its code, add --trust {root}")
    found = getattr(import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, MLP)):
        raise ValueError(f"--model_class {named[-1]}: expected a subclass of makemore_pl.MLP")
    return found
