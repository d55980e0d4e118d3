"""Measures the project on a GPU against plain loops on the same card, in turn: `make gpu`.

The loops are those of peers.py with their tensors on the device. Ours is what `fit` does inside the Trainer's loop,
validations, logs and checkpoints included, at a batch of 32 and with all windows in every step. Memory is the most
that was held at a time, less what cuBLAS keeps from the first call on.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peers
import torch
from run import CONFIGS, HERE, LOOP_STEPS, fit, machine

from makemore_pl import MLP
from makemore_pl.commands import cli

GPU = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]
FULL_STEPS = cli.TRAINER_DEFAULTS["max_steps"]
NAMES = 1_000_000
ROUNDS = 5


def seconds(work, *arguments):
    """The time of a call, including its work on the device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work(*arguments)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def fit_seconds(folder, *options):
    """The seconds inside the Trainer's loop, which ends with a checkpoint and therefore waits for the device."""
    return fit(folder, *GPU, *options)[0]


def whole_fit_seconds(folder):
    """The seconds of Trainer.fit, including set-up."""
    took = []
    cli.CLI.fit = lambda self, **options: took.append(seconds(lambda: self.trainer.fit(**options)))
    try:
        fit(folder, *GPU)
    finally:
        del cli.CLI.fit
    return took[0]


def windows():
    """The training windows, copied to the device for this measurement."""
    return [tensor.cuda() for tensor in peers.windows()[0]]


def full_steps(parameters, optimizer, X, Y):
    for _ in range(FULL_STEPS):
        peers.loss_and_gradient(parameters, X, Y)
        optimizer.step()


def plain_full_seconds():
    parameters = peers.parameters("cuda")
    return seconds(full_steps, parameters, torch.optim.AdamW(parameters, lr=0.04, fused=True), *windows())


def with_peak(work):
    """The result of the work, and its peak device memory in MB."""
    gc.collect()  # a Trainer has reference cycles, which keep its tensors
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return work(), (torch.cuda.max_memory_allocated() - before) / 1e6


def measured(work, **ways):
    """Runs the ways alternately; a ratio is ours over the plain one of the same round, if there is one."""
    rounds = [{name: with_peak(way) for name, way in ways.items()} for _ in range(1 + ROUNDS)][1:]  # the first warms up
    row = {"work": work}
    for name in ways:
        row[name], peaks = map(list, zip(*(each[name] for each in rounds), strict=True))
        row[f"{name}_peak_mb"] = max(peaks)
    if "plain" in ways:
        ratios = [ours / plain for ours, plain in zip(row["ours"], row["plain"], strict=True)]
        row |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    print(table_line(row), flush=True)
    return row


def table_line(row):
    cells = [row["work"]]
    for name in ("plain", "ours"):
        cells.append(f"{rounded(statistics.median(row[name]))}, {row[f'{name}_peak_mb']:.0f} MB" if name in row else "")
    cells.append("**{ratio:.3g}** | {lowest:.3g} to {highest:.3g}".format(**row) if "ratio" in row else " | ")
    return f"| {' | '.join(cells)} |"


def rounded(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def driver():
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE / "gpu.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here, so there is nothing to measure")

    found = machine() | {"driver": driver(), "cuda": torch.version.cuda}
    print("| work | plain | ours | ratio | spread |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lecture = ["--config", CONFIGS / "lecture.yaml", "--trainer.max_steps", LOOP_STEPS]
        _, checkpoint = fit(folder, *GPU)
        model = MLP.load_from_checkpoint(checkpoint, "cuda", weights_only=True)
        rows = [
            measured(
                "steps/s of 32 windows, the lecture's procedure",
                plain=lambda: LOOP_STEPS / seconds(peers.loop, *windows(), LOOP_STEPS),
                ours=lambda: LOOP_STEPS / fit_seconds(folder, *lecture),
            ),
            measured(
                "steps/s of all windows, the default recipe",
                plain=lambda: FULL_STEPS / plain_full_seconds(),
                ours=lambda: FULL_STEPS / fit_seconds(folder),
            ),
            measured("s for Trainer.fit of the default recipe", ours=lambda: whole_fit_seconds(folder)),
            measured("names/s, 1,000,000 of them", ours=lambda: NAMES / seconds(model.sample, NAMES)),
        ]
    options.output.write_text(json.dumps({"machine": found, "rows": rows}, indent=1) + "\n")
    print("\n" + ", ".join(f"{key} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
