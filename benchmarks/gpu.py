"""Measures the project on a GPU against plain loops on the same card, in turn: `make gpu`.

The loops are those of `make bench`, with their tensors on the device. Ours is what `fit` does inside the Trainer's
loop, validations, logs and checkpoints included.
"""

import json
import sys
import tempfile
from pathlib import Path

import peers
import torch
from run import HERE, LOOP_STEPS, bare_loop, best_model, fit, like_the_command_line, machine, measured

GPU = ["--trainer.accelerator=gpu", "--trainer.devices=1"]
NAMES = 1_000_000


def seconds(work, *arguments):
    """The time of a call, including its work on the device."""
    torch.cuda.synchronize()
    return peers.seconds(lambda: (work(*arguments), torch.cuda.synchronize()))


def main():
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here, so there is nothing to measure")
    like_the_command_line()
    X, Y = peers.windows("cuda")[0]
    print("| work | plain | ours | ratio | spread |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = best_model(fit(folder, *GPU)).cuda()  # the first fit warms up
        rows = [
            measured(
                f"{LOOP_STEPS:,} updates of the lecture, against its loop",
                lambda: seconds(peers.loop, X, Y, LOOP_STEPS),
                lambda: fit(folder, *GPU, "--config", "lecture", "--trainer.max_epochs", 2).model.seconds,
            ),
            measured(
                "the default fit, against a bare loop",
                lambda: seconds(bare_loop, "cuda"),
                lambda: fit(folder, *GPU).model.seconds,
            ),
        ]
    names_s = seconds(model.sample, NAMES)
    print(f"\n{NAMES:,} names in {names_s:.2f} s")
    found = {"machine": machine(), "rows": rows, "names_s": names_s}
    (HERE / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
