"""Measures the project against its peers, side by side, and prints ratios: `make bench`.

README.md in this folder describes what each row measures and what it excludes.
"""

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lightning
import peers
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from peers import seconds

import makemore_pl
from makemore_pl import MLP, NamesDataModule, Sampler
from makemore_pl.commands import cli
from makemore_pl.commands.process import keep_freed_memory
from makemore_pl.sampling import Draw
from makemore_pl.windows import align_counts, build_windows

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
LOOP_STEPS, LECTURE_STEPS = 20_000, 200_000
PARTS = ["training", "process", "busy", "arithmetic", "sampling", "large", "cost"]


class Peer:
    """Runs functions of peers.py in a separate process, so that neither side's settings affect the other."""

    def __init__(self):
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def __getattr__(self, name):
        return lambda *arguments: self.pool.submit(getattr(peers, name), *arguments).result()


@contextlib.contextmanager
def fit_loop_clock():
    """Measures the time inside the Trainer's fit loop: steps, validations, logs and checkpoints, without set-up."""
    took, run = [], _FitLoop.run
    _FitLoop.run = lambda fit_loop: took.append(seconds(run, fit_loop))
    try:
        yield took
    finally:
        _FitLoop.run = run


def fit(folder, *arguments):
    """Runs the whole `fit` in this process; returns the seconds in its loop and the checkpoint."""
    sys.argv = ["makemore_pl", "fit", "--trainer.default_root_dir", str(folder), "--pictures", "false"]
    sys.argv += map(str, arguments)
    with fit_loop_clock() as took, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli.main()
    return took[0], max(folder.glob("lightning_logs/*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)


def validation_loss(checkpoint):
    callbacks = torch.load(checkpoint, weights_only=True)["callbacks"]
    return float(callbacks["RunCheckpoint best"]["best_model_score"])


def measured(work, peer, ours, at_least, aim, rounds=5):
    """Runs the two alternately; returns the ratio of each round."""
    pairs = [(peer(), ours()) for _ in range(rounds)]
    ratios = [theirs / own for theirs, own in pairs]
    row = {
        "work": work,
        "peer_s": statistics.median(theirs for theirs, _ in pairs),
        "ours_s": statistics.median(own for _, own in pairs),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "at_least": at_least,
        "aim": aim,
    }
    print(table_line(row), flush=True)
    return row


def table_line(row):
    return (
        f"| {row['work']} | {row['peer_s']:.3g} s | {row['ours_s']:.3g} s | **{row['ratio']:.3g}** "
        f"| {row['lowest']:.3g} to {row['highest']:.3g} |"
    )


def training(peer, folder, device="cpu"):
    accelerator = ["--trainer.accelerator", {"cpu": "cpu", "cuda": "gpu"}[device]]
    on = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    reached = []

    def loop():
        return peer.time_loop(LOOP_STEPS, device) * LECTURE_STEPS / LOOP_STEPS

    def quick():
        took, checkpoint = fit(folder, "--config", CONFIGS / "quick.yaml", *accelerator)
        reached.append(validation_loss(checkpoint))
        return took

    def lecture():
        return fit(folder, "--config", CONFIGS / "lecture.yaml", "--trainer.max_steps", LOOP_STEPS, *accelerator)[0]

    rows = [
        measured(f"to validation loss 2.1701, training loop{on}", loop, quick, 60, 150),
        measured(
            f"20,000 steps of the lecture, against its loop{on}",
            lambda: peer.time_loop(LOOP_STEPS, device),
            lecture,
            1,
            3,
        ),
    ]
    assert max(reached) <= 2.1701, f"configs/quick.yaml reaches only {max(reached)}"
    if device == "cpu":
        usual = 2000
        rows.append(
            measured(
                "20,000 steps of the lecture, against the usual Lightning",
                lambda: peer.time_usual_lightning(usual, folder) * LOOP_STEPS / usual,
                lecture,
                5,
                15,
            )
        )
    return rows


def whole_process(folder):
    def notebook():
        script = [sys.executable, HERE / "peers.py", str(LOOP_STEPS)]
        start = time.perf_counter()
        in_loop = float(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
        return time.perf_counter() - start + in_loop * (LECTURE_STEPS / LOOP_STEPS - 1)

    def ours():
        command = [
            sys.executable,
            "-m",
            "makemore_pl",
            "fit",
            "--config",
            CONFIGS / "quick.yaml",
            "--pictures",
            "false",
        ]
        return seconds(lambda: subprocess.run(command, check=True, capture_output=True, cwd=folder))

    return [measured("the same as the first, from launch to exit", notebook, ours, 8, 15)]


@contextlib.contextmanager
def other_work():
    """Keeps every core busy with one process each until the block ends."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def busy(folder):
    """Measures the command line beside other work, and the cost of its choice of threads without other work."""
    spinning = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "ACTIVE"}  # torch's own choice

    def whole(*arguments, **environment):
        command = [sys.executable, "-m", "makemore_pl", *arguments]
        options = {"check": True, "capture_output": True, "cwd": folder, "env": os.environ | environment}
        return seconds(lambda: subprocess.run(command, **options))

    def beside(*arguments, **environment):
        with other_work():
            return whole(*arguments, **environment)

    fit, lr_find = ["fit"], ["lr_find"]
    predict = ["predict", "--sample.num_names", "1000000", "--sample.output", "names"]
    rows = []
    for name, command in [("default fit", fit), ("lr_find", lr_find), ("predict, 1,000,000 names", predict)]:
        rows += [
            measured(
                f"{name}, quiet, against all threads",
                lambda c=command: whole(*c, **spinning),
                lambda c=command: whole(*c),
                0.8,
                1,
                rounds=3,
            ),
            measured(
                f"{name}, beside other work, against quiet",
                lambda c=command: whole(*c),
                lambda c=command: beside(*c),
                0.5,
                1,
                rounds=3,
            ),
        ]
    spins = "default fit, beside other work, against all threads"
    return [measured(spins, lambda: beside(*fit, **spinning), lambda: beside(*fit), 2, 4, rounds=2), *rows]


def arithmetic(peer):
    data, model = NamesDataModule(), MLP(init="lecture")
    train = data.view("train", counted=True)
    held_out = align_counts(*data.count("val", "test").values())  # dev and test share most of their contexts
    contexts, counts = held_out[0].contexts, [own[:].float() for own in held_out]

    def gradient():
        model.zero_grad()
        torch.autograd.backward(model.loss(model(train[0]), train[1]))

    def evaluate():
        with torch.inference_mode():
            logits = model(contexts)
            return [model.loss(logits, own) for own in counts]

    drawn = peers.parameters()
    for own, theirs in zip(evaluate(), peers.windows()[1:], strict=True):
        torch.testing.assert_close(own, peers.loss(drawn, *theirs), rtol=1e-5, atol=1e-5)

    splits = data.splits["train"], data.vocabulary, 3
    return [
        measured(
            "loss and gradient over the training split",
            lambda: peer.time_loss_and_gradient("cpu"),
            lambda: seconds(gradient, times=10),
            40,
            80,
            rounds=9,
        ),
        measured(
            "loss over dev and test",
            lambda: peer.time_loss("cpu"),
            lambda: seconds(evaluate, times=50),
            20,
            40,
            rounds=9,
        ),
        measured(
            "windows from words", peer.time_build_dataset, lambda: seconds(build_windows, *splits, times=10), 20, 50
        ),
    ]


def sampling(peer, model, names=1_000_000, their_names=2000):
    state = model.state_dict()
    return [
        measured(
            f"{names:,} names as text",
            lambda: peer.time_sample(state, their_names) * names / their_names,
            lambda: seconds(model.sample, names),
            300,
            600,
        )
    ]


def large(folder, model, words=10_000_000):
    """Measures ten million sampled words, in a separate process to know its memory."""
    path = folder / "large.txt"
    draw = Draw(Sampler(words, seed=1), model, model.vocabulary, model.block_size)
    with path.open("w") as file:
        for number in draw.sampler:
            file.write("\n".join(draw.chunk(number)) + "\n")
    script = [sys.executable, HERE / "large.py", path]
    found = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    print("\n{words:,} words: read at {words_per_second:,.0f} words/s".format(**found))
    print(
        "split in {split_s:.1f} s, counted in {count_s:.1f} s, peak memory {peak_gb:.2f} GB (at most 3)".format(**found)
    )
    print("fitted in {fit_s:.1f} s, {fit_ratio:.2f} times as long as 32,033 words (at most 4)".format(**found))
    return found


def cost():
    """Measures in a separate process, on one thread."""
    script = [sys.executable, HERE / "cost.py"]
    return json.loads(subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout)


def devices():
    return ["cpu"] + ["cuda"] * torch.cuda.is_available()


def fitted_model(folder):
    """Trains the default recipe on names.txt."""
    _, checkpoint = fit(folder, "--trainer.accelerator", "cpu")
    return MLP.load_from_checkpoint(checkpoint, weights_only=True)


def machine():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n") if cpuinfo.exists() else []
    return {
        "processor": next(
            (line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor()
        ),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "makemore_pl": makemore_pl.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=PARTS, help="measure this part alone; others of this machine stay")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does

    found: dict[str, Any] = {"machine": machine()}
    if options.only and options.output.exists():
        before = json.loads(options.output.read_text())
        found = before if before["machine"] == found["machine"] else found
    peer, fitted = Peer(), functools.cache(fitted_model)
    print("| work | peer | ours | ratio | spread |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure = {
            "training": lambda: [row for device in devices() for row in training(peer, folder, device)],
            "process": lambda: whole_process(folder),
            "busy": lambda: busy(folder),
            "arithmetic": lambda: arithmetic(peer),
            "sampling": lambda: sampling(peer, fitted(folder)),
            "large": lambda: large(folder, fitted(folder)),
            "cost": cost,
        }
        for part in [options.only] if options.only else PARTS:
            found[part] = measure[part]()
            options.output.write_text(json.dumps(found, indent=1) + "\n")  # a later part may fail
    print("\n" + ", ".join(f"{key} {value}" for key, value in found["machine"].items()))


if __name__ == "__main__":
    main()
