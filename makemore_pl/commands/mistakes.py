"""Errors of a command -> one line on stderr and exit status 2, where they are mistakes of the user."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from makemore_pl.commands.messages import fail, last_part
from makemore_pl.commands.parser import Parser

MAY_RAISE = ("lightning.pytorch.callbacks.", "lightning.pytorch.accelerators.", "lightning.fabric.accelerators.")
"""Where Lightning raises errors about flags and callbacks that are not of the usual kinds."""


@contextmanager
def in_one_line() -> Iterator[None]:
    """Puts the errors of a command into one line; an error of the program itself keeps its trace."""
    try:
        yield
    except BrokenPipeError:
        # The reader of our names has closed the pipe. Python would complain when it closes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ProcessExitedException, ProcessRaisedException) as error:
        reason = str(error).strip().split("\n")[-1]  # what is above is the trace of another process
        if not reason.startswith("BrokenPipeError"):
            fail(reason)
    except (MemoryError, torch.OutOfMemoryError) as error:
        fail(f"out of memory: {str(error).split('. ')[0] or 'try smaller sizes'}")
    except (RuntimeError, AttributeError, TypeError) as error:
        if "can't allocate memory" in str(error):
            fail("out of memory: try smaller sizes, or --data.batch_size")
        if not raised_by_lightning(error):
            raise
        fail(error)
    except ValueError as error:
        fail(name_flag(str(error)))
    except (OSError, ImportError, MisconfigurationException) as error:
        fail(error)


def raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning raised an error about its input: a flag, or a callback that misses something."""
    frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith(MAY_RAISE) for name in frames[-3:])


def name_flag(message: str) -> str:
    """Writes `--model.lr -1: expected ...` for the command line where Python says `lr is -1: expected ...`."""
    command = next((Parser.parsers[word] for word in sys.argv[1:] if word in Parser.parsers), None)
    if command is None or not (match := re.match(r"(\w+) is (\S+): expected ", message)):
        return message
    flags = [flag for flag in command.flags if last_part(flag) == match[1]]
    return f"{flags[0]} {match[2]}: expected {message[match.end() :]}" if flags else message
