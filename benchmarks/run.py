"""Measures the project against its peers, side by side, and prints ratios: `make bench`.

README.md in this folder describes what each row measures and what it excludes.
"""

import contextlib
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
from itertools import chain
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # both sides; torch reads it when it is imported

import cost
import lightning
import peers
import torch
from peers import Timed, seconds

import makemore_pl
from makemore_pl import MLP, NamesDataModule, Sampler
from makemore_pl.cli import CLI
from makemore_pl.parser import silence_stock_noise
from makemore_pl.process import keep_freed_memory
from makemore_pl.sampling import Draw
from makemore_pl.windows import build_windows

HERE = Path(__file__).parent
PROGRAM = [sys.executable, "-m", "makemore_pl"]
LOOP_STEPS, LECTURE_STEPS = 20_000, 200_000
WORDS = 10_000_000


class TimedMLP(Timed, MLP):
    """MLP that measures its training loop."""


def new_process():
    """Makes a pool of one process, whose settings and memory are its own."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def like_the_command_line():
    keep_freed_memory()
    silence_stock_noise()


def fit(folder, *arguments, data=NamesDataModule):
    """Runs the whole `fit` in this process; returns the command line, whose model knows its seconds."""
    args = ["fit", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={folder}", "--pictures=false"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return CLI(TimedMLP, data, args=[*args, *map(str, arguments)])


def best_model(cli):
    """Loads the best network of a fit."""
    return MLP.load_from_checkpoint(cli.folder / "checkpoints" / "best.ckpt")


def measured(work, peer, ours, at_least=None, rounds=3):
    """Runs the two alternately, each of which returns its seconds; prints and returns their ratio."""
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
    }
    print(
        "| {work} | {peer_s:.3g} s | {ours_s:.3g} s | **{ratio:.3g}** | {lowest:.3g} to {highest:.3g} |".format(**row),
        flush=True,
    )
    return row


def training(peer, folder):
    def loop():
        return peer(peers.time_loop, LOOP_STEPS)

    def quick():
        cli = fit(folder, "--config", "quick")
        assert cli.trainer.callback_metrics["val/loss"] <= 2.1701, "configs/quick.yaml does not reach 2.1701"
        return cli.model.seconds

    def lecture():
        return fit(folder, "--config", "lecture", "--trainer.max_epochs", 2).model.seconds  # of 10,000 updates

    def usual():
        return peer(peers.time_usual_lightning, LOOP_STEPS // 10, folder) * 10

    whole = LECTURE_STEPS / LOOP_STEPS
    return [
        measured("to validation loss 2.1701, training loop", lambda: loop() * whole, quick, 60),
        measured("20,000 updates of the lecture, against its loop", loop, lecture, 2.0),
        measured("20,000 updates of the lecture, against the usual Lightning", usual, lecture),
        measured("the default fit, against a bare loop", bare_loop, lambda: fit(folder).model.seconds, 0.87),
    ]


def bare_loop(device="cpu", steps=500, validate_every=25):
    """The default fit without a Trainer: the same arithmetic and the same validations; returns its seconds."""
    data, model = NamesDataModule(), MLP().to(device)
    (X, Y), val = [(own.contexts.to(device), own[:].float().to(device)) for own in map(data.count, ("train", "val"))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.04, betas=(0.85, 0.95), weight_decay=0.3, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / (steps / 10), (1 - i / steps) / 0.9))
    start = time.perf_counter()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model.loss(model(X), Y).backward()
        optimizer.step()
        rate.step()
        if step % validate_every == 0:
            with torch.no_grad():
                model.loss(model(val[0]), val[1])
    return time.perf_counter() - start


def whole_process(folder):
    def notebook():
        script = [sys.executable, HERE / "peers.py", str(LOOP_STEPS)]
        start = time.perf_counter()
        in_loop = float(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
        return time.perf_counter() - start + in_loop * (LECTURE_STEPS / LOOP_STEPS - 1)

    command = [*PROGRAM, "fit", "--config", "quick", "--pictures", "false"]
    return measured("to validation loss 2.1701, from launch to exit", notebook, lambda: launched(command, folder))


def launched(command, folder):
    """The seconds of a process."""
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True, cwd=folder))


def arithmetic(peer):
    data, model = NamesDataModule(), MLP(init="lecture")
    train, val, test = map(data.count, ("train", "val", "test"))
    X, Y = train.contexts, train[:].float()
    held_out = [(split.contexts, split[:].float()) for split in (val, test)]

    def gradient():
        model.zero_grad()
        model.loss(model(X), Y).backward()

    def evaluate():
        with torch.inference_mode():
            return [model.loss(model(contexts), counts) for contexts, counts in held_out]

    drawn = peers.parameters()
    for own, theirs in zip(evaluate(), peers.windows()[1:], strict=True):
        torch.testing.assert_close(own, peers.loss(drawn, *theirs), rtol=1e-5, atol=1e-5)

    def windows():
        build_windows(data.splits["train"], data.vocabulary, 3)

    pairs = [
        ("loss and gradient over the training split", peers.time_loss_and_gradient, gradient),
        ("loss over dev and test", peers.time_loss, evaluate),
        ("windows from words", peers.time_build_dataset, windows),
    ]
    return [measured(name, lambda t=theirs: peer(t), lambda o=own: seconds(o, times=20)) for name, theirs, own in pairs]


def sampling(peer, model, folder, names=1_000_000, their_names=2000):
    def loop():
        return peer(peers.time_sample, model.state_dict(), their_names) * names / their_names

    command = [*PROGRAM, "predict", "--sample.num_names", str(names)]
    return [
        measured(f"{names:,} names as text", loop, lambda: seconds(model.sample, names)),
        measured(f"{names:,} names, `predict` from launch to exit", loop, lambda: launched(command, folder), 130),
    ]


def draw_words(path, model):
    """Writes ten million names."""
    draw = Draw(Sampler(WORDS, seed=1), model, model.vocabulary, model.block_size)
    with path.open("w") as file:
        file.writelines(f"{name}\n" for name in chain.from_iterable(draw))


def large(path):
    """Reads, splits, counts and fits a list of ten million words; run it in a process of its own."""
    import resource  # not on Windows

    like_the_command_line()
    found = {"words": WORDS} | read_and_count(path)
    config = path.with_name("empty.yaml")
    config.write_text("{}")  # with a config, nothing is chosen for a list
    small_s, large_s = (fit(path.parent, "--config", config, *own).model.seconds for own in ([], ["--data.path", path]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found | {"fit_ratio": large_s / small_s, "peak_gb": peak}


def read_and_count(path):
    data = NamesDataModule(str(path))
    steps = {"read": lambda: data.words, "split": lambda: data.splits, "count": lambda: data.count("train")}
    return {f"{name}_s": seconds(step) for name, step in steps.items()}


def machine():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n") if cpuinfo.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    versions = {module.__name__: module.__version__ for module in (torch, lightning, makemore_pl)}
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
    } | versions


def main():
    like_the_command_line()
    pool = new_process()

    def peer(work, *arguments):
        return pool.submit(work, *arguments).result()

    print("| work | peer | ours | ratio | spread |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*training(peer, folder), whole_process(folder), *arithmetic(peer)]
        model = best_model(fit(folder))
        rows += sampling(peer, model, folder)
        draw_words(folder / "large.txt", model)
        found = new_process().submit(large, folder / "large.txt").result()
    print(
        "\n{words:,} words: read in {read_s:.1f} s, split in {split_s:.1f} s, counted in {count_s:.1f} s; the default "
        "fit takes {fit_ratio:.2f} times as long as on names.txt; {peak_gb:.2f} GB of memory".format(**found)
    )
    results = {"machine": machine(), "rows": rows, "large": found, "cost": cost.measure()}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    missed = [row["work"] for row in rows if row["ratio"] < (row["at_least"] or 0)]
    if missed:
        sys.exit(f"not reached: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
