"""The parser: recipes by name, a screen of help for each command, and mistakes in one line with a remedy."""

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from makemore_pl import __version__
from makemore_pl.report import say
from makemore_pl.words import shipped

RECIPES = ", ".join(sorted(path.stem for path in shipped("configs").glob("*.yaml")))
"""The names of the recipes that come with the package."""

COMMANDS = {
    "fit": "train on a list of words, then print new ones",
    "predict": "print new words, or score given ones",
    "validate": "loss, perplexity and accuracy on the validation words",
    "test": "the same on the test words",
    "lr_find": "find a learning rate: the lecture's sweep",
    "export": "write an interactive web page of the network",
}

NEWEST = "  --ckpt_path FILE              a checkpoint; default: the newest run's best\n"

OPENINGS = {
    "fit": """Trains on a list of words, then prints new ones. The flags that matter most:

  --data.path FILE              your own list, one word a line; `-` for stdin;
                                flags that you omit are chosen to suit it
  --data.column NAME            its column, where the list is a CSV or TSV file
  --data.encoding NAME          its encoding, where it is not UTF-8
  --config NAME                 a recipe, such as lecture; or a YAML file
  --ckpt_path last              resume the newest run; or resume from a file
  --init_from best              begin with the weights of another run
  --model.block_size N          how many characters the model looks back
  --model.hidden_size N         units of the tanh layer
  --model.embedding_dim N       dimensions of a character's embedding
  --model.lr X                  learning rate (lr_find finds one)
  --model.optimizer sgd         as in the lecture, instead of AdamW
  --data.batch_size N           minibatches instead of all windows at once
  --trainer.max_steps N         how many updates; or --trainer.max_epochs
  --trainer.accelerator gpu     the device; also --trainer.devices, .precision
  --trainer.default_root_dir D  the folder of lightning_logs
  --seed_everything N           another seed for weights and batches
  --pictures false              no pictures in TensorBoard
""",
    "predict": "Prints new words; the word list is not needed. The flags that matter most:\n\n"
    + NEWEST
    + """  --sample.num_names N          how many
  --sample.prompt TEXT          how each begins
  --sample.temperature X        below 1 more typical, above 1 more varied
  --sample.top_k N              only the N most likely characters
  --sample.unique               no duplicates
  --sample.novel                only names that are not in the list
  --sample.pattern REGEX        only names that match it: .*ette, .{3,8}
  --sample.seed random          others each time
  --sample.counting             mixed with counting the list: the lower loss
  --sample.score FILE           how likely are these words? `-` for stdin
""",
    "validate": "Prints loss, perplexity and accuracy on the validation words.\n\n"
    + NEWEST
    + """  --split train                 the training words instead
  --data.path FILE              all words of another list
""",
    "test": "Prints loss, perplexity and accuracy on the test words.\n\n" + NEWEST,
    "lr_find": """Takes one step at each of many learning rates from 0.001 to 1 and suggests one.
All flags of fit's model and data apply:

  --data.path FILE              your own list
  --config NAME                 a recipe, such as lecture; or a YAML file
  --num_steps N                 how many learning rates to try
""",
    "export": "Writes an interactive page of the network: one file, no server.\n\n"
    + NEWEST
    + "  --output playground.html      the file\n",
}

ALL = "All flags and their values: makemore_pl {} --print_config\n"

MEANT = {
    **dict.fromkeys(["epochs", "max_epochs", "num_epochs"], "--trainer.max_epochs"),
    **dict.fromkeys(["steps", "max_steps"], "--trainer.max_steps"),
    **dict.fromkeys(["lr", "learning_rate", "l"], "--model.lr"),
    **dict.fromkeys(["batch_size", "b"], "--data.batch_size"),
    **dict.fromkeys(["input_file", "i"], "--data.path"),
    **dict.fromkeys(["weight_decay", "w"], "--model.weight_decay"),
    **dict.fromkeys(["n_hidden", "n_embd2"], "--model.hidden_size"),
    **dict.fromkeys(["work_dir", "o"], "--trainer.default_root_dir"),
    **dict.fromkeys(["gpus", "device"], "--trainer.accelerator gpu"),
    "n_embd": "--model.embedding_dim",
    "seed": "--seed_everything",
    "resume": "--ckpt_path last",
    **{"train": "fit", "sample": "predict", "generate": "predict", "evaluate": "validate"},
}
"""Flags and commands of other programs, makemore.py among them, and their names here."""


class RecipeFile(ActionConfigFile):
    """`--config`: a YAML file, or the name of a recipe that comes with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        recipe = shipped("configs") / f"{values}.yaml"
        if re.fullmatch(r"[\w./-]+", values) and not Path(values).exists():
            if "/" in values or not recipe.is_file():
                raise ValueError(f"--config {values}: no such file or recipe; the recipes are {RECIPES}")
            values = str(recipe)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class Parser(LightningArgumentParser):
    """A parser of one command, or of the program; its mistakes are raised, for the command line to explain.

    Args:
        command: the name of the command; empty for the program. jsonargparse makes others, for the options of a class.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        kwargs |= {"allow_abbrev": False, "exit_on_error": False}
        if command is not None:
            kwargs["usage"] = f"makemore_pl {command or 'COMMAND'} [--flag value ...]"
        if command == "":
            kwargs["version"] = __version__
        super().__init__(*args, **kwargs)
        self.command = command
        if command is not None:
            text = f"a recipe: {RECIPES}; or a YAML file"
            self.add_argument("-c", "--config", action=RecipeFile, metavar="NAME", help=text)

    def format_help(self, *args: Any) -> str:
        usage = self.usage
        if self.command:
            return f"usage: {usage}\n\n{OPENINGS[self.command]}\n{ALL.format(self.command)}"
        commands = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
        more = "`makemore_pl fit --help` lists the flags of a command. `python -m makemore_pl` is the same program."
        return f"usage: {usage}\n\nMore words like yours.\n\n{commands}\n\n{more}\n"


def explain(message: str, flags: Iterable[str]) -> str:
    """Rewords the commonest mistakes in one line; what jsonargparse says well passes as it is.

    Args:
        message: of jsonargparse.
        flags: of the command, without their dashes.
    """
    message = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: --?([^\s=]+)", message):
        return f"unknown flag --{match[1]}{did_you_mean(match[1], flags) or '; --help lists the flags'}"
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        path = f": did you mean --data.path {match[1]}?" if Path(match[1]).is_file() else ": every value follows a flag"
        return f"unexpected {match[1]}{path}"
    if match := re.match(r"argument subcommand: invalid choice: '(.*)' \(choose", message):
        return f"unknown command {match[1]}{did_you_mean(match[1], COMMANDS) or f': expected {either(COMMANDS)}'}"
    if message.startswith('expected "subcommand"'):
        return f"no command: expected {either(COMMANDS)}"
    if match := re.search(r"Problem with given class_path '(\S+?)'[.:] (.*?)(?: - Expected| Subtypes|$)", message):
        return f"{match[1]}: {match[2]}"
    if match := re.match(r'Parser key "([^"]*)": (.*)', message):
        # Of a type with several parts, jsonargparse says for each of them why it did not fit.
        key, rest = match.groups()
        value = re.search(r"(?:Got value|Given value): ?(.*)$", rest)
        types = re.findall(r"Expected an? (?:<class '([^']*)'>|typing.Literal\[([^]]*)\])", rest)
        if value is not None and types:
            words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
            names = [words.get(kind, "null" if kind == "NoneType" else kind) or literal for kind, literal in types]
            return f"--{key} {value[1]}: expected {either(name.replace(chr(39), '') for name in names)}"
        return f"--{key}: {rest}"
    return message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Proposes the flag or command that was probably meant; empty if none is near."""
    word = word.replace("-", "_")
    if meant := MEANT.get(word):
        return f": did you mean {meant}?"
    # Flags are compared by their last part: the first parts have much in common.
    ends = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(word.rpartition(".")[2], ends, 1, 0.65)
    return f": did you mean {'--' * (ends[near[0]] not in COMMANDS)}{ends[near[0]]}?" if near else ""


def either(names: Iterable[str]) -> str:
    """Joins names: `a, b or c`."""
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} or {last}" if most else last


@contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the program with one line and exit status 2 on a mistake of the user; our own faults keep their trace."""
    try:
        yield
    except BrokenPipeError:
        # The reader of our names has closed the pipe. Python would complain when it closes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, torch.OutOfMemoryError):
        fail("out of memory; try smaller sizes, or --data.batch_size")
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            fail("out of memory; try smaller sizes, or --data.batch_size")
        if "in loading state_dict" in str(error):
            what = "the checkpoint has other weights than this network: omit sizes such as --model.hidden_size"
            fail(f"{what} ({' '.join(str(error).split())[:250]} ...)")
        if "conditioned on metric" in str(error):  # Lightning says it well
            fail(" ".join(str(error).split()))
        raise
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            fail(f"{error.filename}: {error.strerror.lower()}")
        fail(" ".join(str(error).split()))


def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit status 2."""
    say(f"error: {message}")
    sys.exit(2)


def silence_stock_noise() -> None:
    """Drops lines that Lightning prints on every run and that need no action; other warnings stay."""
    noise = (
        *("\N{ELECTRIC LIGHT BULB} Tip:", "GPU available: ", "TPU available: ", "`Trainer.fit` stopped: `max_"),
        *("Using 16bit Automatic", "Using bfloat16 Automatic", "Restoring states from the", "Restored all states from"),
        *("Loading weights", "Loaded model weights", "You are using a CUDA device"),
        *("Initializing distributed: ", f"{'-' * 100}\ndistributed_backend="),
    )
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").addFilter(lambda record: not record.getMessage().startswith(noise))
    for message in [
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's use of torch
        "The number of training batches .+ is smaller",  # updates are counted across epochs
        "You're resuming from a checkpoint that ended before the epoch ended",  # batches follow from the update
        "Checkpoint directory .+ exists and is not empty",  # of a run that is resumed
        "Unable to serialize instance",  # of a default, which config.yaml then omits
        "Be aware that when using `ckpt_path`",  # callbacks that only `fit` has
    ]:
        warnings.filterwarnings("ignore", message)
