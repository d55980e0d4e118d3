"""Counts a list that is read in pieces, in one process and in two, and prints the figures as JSON: `pieces.py LIST`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIT = [sys.executable, "-m", "makemore_pl", "fit", "--data.split", "hashed", "--trainer.max_steps", "1"]
FIT += ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--trainer.accelerator", "cpu"]
LETTERS = ["--data.vocabulary", "abcdefghijklmnopqrstuvwxyz"]


def measure(*flags):
    """The seconds of a whole `fit` of one step, and the peak memory of its first process in GB."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([*FIT, *flags], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


if __name__ == "__main__":
    path = ["--data.path", sys.argv[1]]
    with Path(sys.argv[1]).open("rb") as file:
        found = {"words": sum(1 for _ in file)}
    for processes in (1, 2):
        several = ["--trainer.devices", "2", "--trainer.strategy", "ddp"] if processes > 1 else []
        took, peak = measure(*path, *LETTERS, *several)
        imports, _ = measure(*LETTERS, *several)  # with the default list, that is nearly all
        found |= {f"{processes}_s": took - imports, f"{processes}_peak_gb": peak}
    took, _ = measure(*path)
    imports, _ = measure(*LETTERS)
    found["letters_s"] = took - imports - found["1_s"]
    print(json.dumps(found))
