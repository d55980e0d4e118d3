"""Two processes with one thread each against one process with one thread: `python benchmarks/devices.py`.

Prints the steps per second of the fit loop and their ratio, the median of three rounds taken in turn.
"""

import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it; and a parent of forks must not have threads

import torch
from lightning.pytorch import trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from peers import seconds

from makemore_pl.commands import cli

ROUNDS = 3
WORKLOADS = {  # flags and steps, the latter for a few seconds each
    "the default recipe": ([], 300),
    "every window a row": (["--data.counted", "false"], 20),
    "2,000 hidden units, embeddings of 200": (["--model.hidden_size", "2000", "--model.embedding_dim", "200"], 20),
    "block size 8": (["--model.block_size", "8"], 30),
    "batches of 32": (["--data.batch_size", "32"], 1000),
}
QUIET = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--trainer.limit_val_batches", "0"]


class TimedFitLoop(_FitLoop):
    """Writes the seconds of the first process to a file: in every step all wait for each other."""

    def run(self):
        took = seconds(super().run)
        if self.trainer.is_global_zero:
            Path("seconds").write_text(str(took))


def steps_per_second(flags, steps, processes):
    sys.argv = ["makemore_pl", "fit", *QUIET, *flags, "--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu"]
    if processes > 1:
        sys.argv += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp_fork"]
    if os.fork() == 0:  # a parent that has trained would hand its heap on to be copied, page by page
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cli.main()
        os._exit(0)
    os.wait()
    return steps / float(Path("seconds").read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.trainer._FitLoop = TimedFitLoop
    os.chdir(tempfile.mkdtemp())
    rows = []
    print("| workload | one process, steps/s | two | ratio | spread |\n|---|---|---|---|---|")
    for name, (flags, steps) in WORKLOADS.items():
        pairs = [[steps_per_second(flags, steps, processes) for processes in (1, 2)] for _ in range(ROUNDS)]
        one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(after / before for before, after in pairs)
        ratio = statistics.median(ratios)
        row = {"workload": name, "flags": flags, "one": one, "two": two, "ratio": ratio}
        rows.append(row | {"lowest": ratios[0], "highest": ratios[-1]})
        print(f"| {name} | {one:.3g} | {two:.3g} | **{ratio:.2f}** | {ratios[0]:.2f} to {ratios[-1]:.2f} |", flush=True)
    print(json.dumps(rows), file=sys.stderr)
