"""Measures what the pictures in TensorBoard cost a default fit, item by item: the least of three runs."""

import contextlib
import functools
import io
import sys
import tempfile
import time
from pathlib import Path

from run import fit_loop_clock

from makemore_pl.commands import cli
from makemore_pl.pictures.board import Board
from makemore_pl.pictures.writing import outline

ITEMS = (
    "draw_letters",
    "draw_next",
    "draw_hidden",
    "write_histograms",
    "write_names",
    "write_letters",
    "write_hparams",
)
HOOKS = ("on_train_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_end", "on_train_end")


def timed(owner, name, spent):
    function = getattr(owner, name)

    @functools.wraps(function)
    def clocked(*arguments):
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    return clocked


def main():
    least: dict[str, float] = {}
    originals = {name: getattr(Board, name) for name in ITEMS + HOOKS}
    for _ in range(3):
        outline.cache_clear()
        spent: dict[str, float] = {}
        for name, original in originals.items():
            setattr(Board, name, original)
            setattr(Board, name, timed(Board, name, spent))
        with tempfile.TemporaryDirectory() as folder, fit_loop_clock() as took:
            sys.argv = ["makemore_pl", "fit", "--trainer.default_root_dir", str(Path(folder)), *sys.argv[1:]]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                cli.main()
            sys.argv = sys.argv[:1]
        spent |= {"all of it": sum(spent[name] for name in HOOKS), "the fit loop": took[0]}
        least = {name: min(seconds, least.get(name, seconds)) for name, seconds in spent.items()}
    for name, seconds in least.items():
        print(f"{name:26} {1000 * seconds:7.0f} ms  {seconds / least['the fit loop']:6.1%} of the loop")


if __name__ == "__main__":
    main()
