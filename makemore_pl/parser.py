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

COMMANDS = {
    "fit": "train on a list of words, then print new ones",
    "predict": "print new words, or score given ones",
    "validate": "loss, perplexity and accuracy on the validation words",
    "test": "loss, perplexity and accuracy on the test words",
    "lr_find": "find a learning rate: one step at each of many, as in the lecture",
    "export": "write an interactive web page of the network",
}

NEWEST = "  --ckpt_path FILE              a checkpoint; default: the newest run's best\n"

# The flags of each command that matter most.
FLAGS = {
    "fit": """  --data.path FILE              your own list, one word a line; `-` for stdin;
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
    "predict": NEWEST
    + """  --sample.num_names N          how many
  --sample.prompt TEXT          how each begins
  --sample.temperature X        below 1 more typical, above 1 more varied
  --sample.top_k N              only the N most likely characters
  --sample.unique               no duplicates
  --sample.novel                only names that are not in the list
  --sample.pattern REGEX        only names that match it: .*ette, .{3,8}
  --sample.seed random          different names each time
  --sample.counting             mix with counting: usually a lower loss
  --sample.score FILE           how likely are these words? `-` for stdin
""",
    "validate": NEWEST
    + """  --split train                 the training words instead
  --data.path FILE              all words of another list
""",
    "test": NEWEST,
    "lr_find": """  --data.path FILE              your own list
  --config NAME                 a recipe, such as lecture; or a YAML file
  --num_steps N                 how many learning rates to try
""",
    "export": NEWEST + "  --output playground.html      the file\n",
}

# Flags and commands of other programs, makemore.py among them, and their names here.
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


class RecipeFile(ActionConfigFile):
    """`--config`: a YAML file, or the name of a recipe that comes with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        recipe = shipped("configs") / f"{values}.yaml"
        if re.fullmatch(r"[\w./-]+", values) and not Path(values).exists():
            if "/" in values or not recipe.is_file():
                names = ", ".join(sorted(path.stem for path in recipe.parent.glob("*.yaml")))
                raise ValueError(f"--config {values}: no such file or recipe; the recipes are {names}")
            values = str(recipe)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class Parser(LightningArgumentParser):
    """A parser of one command, or, if that is empty, of the program; jsonargparse makes others, for a class's options.

    Its mistakes are raised, for the command line to explain.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        kwargs |= {"allow_abbrev": False, "exit_on_error": False}
        if command == "":
            kwargs |= {"version": __version__, "prog": "makemore_pl"}
        super().__init__(*args, **kwargs)
        self.command = command
        if command is not None:
            self.add_argument("-c", "--config", action=RecipeFile)

    def format_help(self, *args: Any) -> str:
        usage = f"usage: makemore_pl {self.command or 'COMMAND'} [--flag value ...]\n\n"
        if self.command:
            about = f"{self.command}: {COMMANDS[self.command]}\n\n{FLAGS[self.command]}"
            return f"{usage}{about}\nAll flags: makemore_pl {self.command} --print_config\n"
        commands = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
        return f"{usage}More words like yours.\n\n{commands}\n\nmakemore_pl fit --help lists the flags of a command.\n"


def explain(message: str, flags: Iterable[str]) -> str:
    """Shortens a message of jsonargparse, and names the flag or command that was probably meant."""
    message = " ".join(message.split())
    for pattern, known in [("unrecognized arguments: -{0,2}([^\\s=]+)", flags), ("invalid choice: '(.*?)'", COMMANDS)]:
        if match := re.search(pattern, message):
            return message + did_you_mean(match[1], known)
    if '"subcommand"' in message:
        return f"name a command: {', '.join(COMMANDS)}"
    # Of a type with several parts, jsonargparse lists the types and says for each why it did not fit.
    message = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ", "", message)
    message = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", message.replace("typing.", ""))
    return re.sub(r'Parser key "([^"]*)"', r"--\1", re.sub(r" Given value type: \S+", ".", message))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Proposes what was probably meant; empty if nothing is near."""
    # Flags are compared by their last part: the first parts have much in common.
    ends = {name.rpartition(".")[2]: name if name in COMMANDS else f"--{name}" for name in known}
    name = word.replace("-", "_")
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, 1, 0.65)
    meant = f"--data.path {word}" if Path(word).is_file() else MEANT.get(name) or (ends[near[0]] if near else "")
    return f": did you mean {meant}?" if meant else "; --help lists the flags"


@contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the program with one line and exit status 2 on a mistake of the user, a ValueError or OSError."""
    try:
        yield
    except BrokenPipeError:
        # The reader of our names has closed the pipe. Python would complain when it closes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            fail("out of memory; try smaller sizes, or --data.batch_size")
        if "in loading state_dict" in str(error):
            fail(f"the checkpoint has other weights; omit sizes such as --model.hidden_size ({str(error)[:250]} ...)")
        if "conditioned on metric" in str(error):  # of a callback
            fail(str(error))
        raise
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        is_file = isinstance(error, OSError) and error.filename is not None and error.strerror
        fail(f"{error.filename}: {error.strerror.lower()}" if is_file else str(error))  # type: ignore[union-attr]


def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit status 2."""
    say(f"error: {' '.join(message.split())}")
    sys.exit(2)


def silence_stock_noise() -> None:
    """Drops what Lightning says on every run and that needs no action; other warnings stay."""
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in [
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's use of torch
        "The number of training batches .+ is smaller",  # updates are counted across epochs
        "You're resuming from a checkpoint that ended before the epoch ended",  # batches follow from the update
        "Checkpoint directory .+ exists and is not empty",  # of a run that is resumed
        "Unable to serialize instance",  # of a default, which config.yaml then omits
        "Be aware that when using `ckpt_path`",  # callbacks that only `fit` has
    ]:
        warnings.filterwarnings("ignore", message)
