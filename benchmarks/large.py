"""Reads, splits, counts and fits a list of millions of words, and prints the figures as JSON: `large.py LIST`."""

import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from run import fit

from makemore_pl import NamesDataModule
from makemore_pl.commands.process import keep_freed_memory


def main():
    keep_freed_memory()
    path, clock = sys.argv[1], time.perf_counter
    data = NamesDataModule(path)
    marks = [clock()]
    words = len(data.words)
    marks.append(clock())
    assert len(data.vocabulary) == 27
    assert len(data.splits["train"]) == int(0.8 * words)
    marks.append(clock())
    contexts = len(data.view("train", counted=True)[0])
    marks.append(clock())
    del data
    ratios, large_s = [], []
    with tempfile.TemporaryDirectory() as name:
        # Whole runs of the default recipe, the same network for both lists: with a config, nothing is chosen for one.
        # Reading and counting are not in the loop's time.
        recipe = Path(name, "default.yaml")
        recipe.write_text("model: {hidden_size: 200}\n")
        same = ["--config", recipe, "--trainer.accelerator", "cpu"]
        for _ in range(2):
            small, _ = fit(Path(name), *same)
            large, _ = fit(Path(name), *same, "--data.path", path)
            ratios.append(large / small)
            large_s.append(large)
            gc.collect()  # the Trainer and the data refer to each other, and would hold the list during the next run
    found = {
        "words": words,
        "contexts": contexts,
        "words_per_second": words / (marks[1] - marks[0]),
        "split_s": marks[2] - marks[1],
        "count_s": marks[3] - marks[2],
        "fit_s": statistics.median(large_s),
        "fit_ratio": statistics.median(ratios),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
