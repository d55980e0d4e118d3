"""Counts a list that is read in pieces, in one process and in two, and prints the figures as JSON: `pieces.py LIST`."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIT = [sys.executable, "-m", "makemore_pl", "fit", "--data.split", "hashed", "--trainer.max_steps", "1"]
FIT += ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--trainer.accelerator", "cpu"]
LETTERS = ["--data.vocabulary", "abcdefghijklmnopqrstuvwxyz"]


def seconds(*flags):
    """Of a whole `fit` of one step, less that of the default list, which is all imports."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*FIT, *flags], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    path = ["--data.path", sys.argv[1]]
    with Path(sys.argv[1]).open("rb") as file:
        words = sum(1 for _ in file)
    found = {"words": words}
    for processes in (1, 2):
        several = ["--trainer.devices", "2", "--trainer.strategy", "ddp"] if processes > 1 else []
        found[f"{processes}_s"] = seconds(*path, *LETTERS, *several) - seconds(*LETTERS, *several)
        found[f"{processes}_peak_gb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    found["letters_s"] = seconds(*path) - seconds(*LETTERS) - found["1_s"]
    print(json.dumps(found))
