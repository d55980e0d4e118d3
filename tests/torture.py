"""`make torture`: kills runs, damages and plants files, and counts failures. test_torture.py runs a small share of it.

Every run is the command line itself, mostly in a process forked from here, which needs no imports.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import tampering
import torch
from forks import (
    BEST,
    BLOCKS,
    BY_STEP,
    LAST,
    MINIBATCH,
    QUIET,
    RECIPES,
    SMALL,
    TOY,
    command,
    digest,
    done,
    files,
    fit,
    forked,
    wait,
)

from makemore_pl import MLP
from makemore_pl.checkpoint import load
from makemore_pl.commands import cli
from makemore_pl.commands.predict import NamesWriter
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable import checkpoints as checkpointing

MINUTES = 12.5
REAL = f"{QUIET} --trainer.max_steps 200"
SHORT = f"{QUIET} --trainer.max_steps 40 --data.steps_per_epoch 10 --data.num_words 2000"
UNTRIED = "not tried for want of time"


def batches(folder):
    """The batches of a run, in order: lines of its step and what was in it."""
    path = folder / "batches"
    return path.read_text().splitlines() if path.exists() else []


def completed(folder):
    """The batches that a run had taken when it was saved."""
    checkpoint = torch.load(folder / LAST, weights_only=True)
    if checkpoint["datamodule_hyper_parameters"]["steps_per_execution"] > 1:
        return checkpoint["global_step"]
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]


def kill_at_every_step(root, recipes=tuple(RECIPES), every=1, deadline=float("inf")):
    """Kills toy runs of three epochs at every step."""
    counts = {
        UNTRIED: 0,
        "runs killed": 0,
        "other final state": 0,
        "batch repeated, skipped or changed": 0,
    }
    points = []
    for recipe in recipes:
        flags, name = f"{TOY} {RECIPES[recipe]}", root / recipe.replace(" ", "_").replace(",", "")
        assert wait(forked(fit, name / "whole", flags)[0]) == 0, (name / "whole" / "log").read_text()
        whole, expected = digest(name / "whole" / LAST), batches(name / "whole")
        numbers = [int(line.split()[0]) for line in expected]
        assert numbers == list(range(completed(name / "whole")))
        points += [(name / str(number), flags, number, whole, expected) for number in numbers[::every]]
    random.shuffle(points)  # should time run short, all recipes have their share
    for folder, flags, number, whole, expected in points:
        if time.monotonic() > deadline:
            counts[UNTRIED] += 1
            continue
        assert wait(forked(fit, folder, flags, number)[0]) == -signal.SIGKILL
        before, begin, saved = len(batches(folder)), 0, (folder / LAST).exists()
        if saved:
            begin = completed(folder)
        else:
            shutil.rmtree(folder)
            before = 0
        status = wait(forked(fit, folder, flags, None, saved)[0])
        over = status == 2 and "this run is finished" in (folder / "log").read_text()
        assert status == 0 or over, (folder / "log").read_text()
        counts["runs killed"] += 1
        # From the checkpoint on: those of the run that never stopped, each once.
        counts["batch repeated, skipped or changed"] += batches(folder)[before:] != expected[begin:]
        counts["other final state"] += digest(folder / LAST) != whole
        shutil.rmtree(folder)
    return counts


def kill_at_random_times(root, number, flags, deadline=float("inf")):
    """Kills real runs at random times."""
    counts = {UNTRIED: 0, "runs killed": 0, "other final state": 0}
    begin = time.monotonic()
    assert wait(forked(fit, root / "whole", flags)[0]) == 0, (root / "whole" / "log").read_text()
    seconds, whole = time.monotonic() - begin, digest(root / "whole" / LAST)
    run = 0
    while counts["runs killed"] < number and time.monotonic() + 1.5 * seconds < deadline:
        run, folder = run + 1, root / str(run)
        child, _ = forked(fit, folder, flags)
        time.sleep(random.uniform(0, 0.9 * seconds))
        os.kill(child, signal.SIGKILL)
        if wait(child) == -signal.SIGKILL:
            counts["runs killed"] += 1
        else:
            seconds *= 0.8  # it was over: the machine is faster now
        saved = (folder / LAST).exists() or (folder / LAST).with_name("best.ckpt").exists()
        if not saved:
            shutil.rmtree(folder)
        status = wait(forked(fit, folder, flags, None, saved)[0])
        assert status == 0 or "this run is finished" in (folder / "log").read_text(), (folder / "log").read_text()
        counts["other final state"] += digest(folder / LAST) != whole
        shutil.rmtree(folder)
    counts[UNTRIED] = number - counts["runs killed"]
    return counts


SPOTS = {
    "a step": (MLP, "training_step", 10),
    "a validation": (MLP, "validation_step", 2),
    "a save": (checkpointing, "write_whole", 3),
    "the last words": (MLP, "sample", 1),
    "reading the list": (NamesDataModule, "setup", 1),
    "sampling": (NamesWriter, "write", 1),
}
"""Where a signal may come in: something that is called, and which of its calls takes its time."""

OTHER_SPOTS = {
    "counted": {"a step": 7},
    "accumulation": {"a step": 10},  # with the gradients of one batch of three
    "minibatch, by step": {"a step": 5},
    "blocks": {"a step": 3},
}
"""The same in other recipes, and which of the calls."""


def linger(command, flags, spot, number, seconds):
    owner, name, _ = SPOTS[spot]
    work, calls = getattr(owner, name), []

    def slow(*arguments, **more):
        calls.append(1)
        if len(calls) == number:
            Path("here").touch()
            time.sleep(seconds)
        return work(*arguments, **more)

    setattr(owner, name, slow)
    sys.argv = ["makemore_pl", command, *flags.split()]
    cli.main()


def interrupt(root, spots=tuple(SPOTS), more=None):
    """Sends signals in every phase; a run resumed from them ends in the state of one that never stopped."""
    counts = {"signals": 0, "other status": 0, "over ten seconds": 0, "second not at once": 0, "other final state": 0}
    recipes = {"minibatch": {spot: SPOTS[spot][2] for spot in spots}} | (more or {})
    signals, flags, whole = (signal.SIGINT, signal.SIGTERM), {}, {}
    for recipe in recipes:
        flags[recipe], folder = f"{TOY} {RECIPES[recipe]}", root / f"whole_{recipe}"
        assert wait(forked(fit, folder, flags[recipe])[0]) == 0
        whole[recipe] = digest(folder / LAST)

    def send(folder, recipe, spot, number, times):
        """Gives the seconds from the last signal to the end."""
        lingering = 1 if times == 1 else 5
        command = ("predict", "--sample.num_names 100000") if spot == "sampling" else ("fit", flags[recipe])
        child, _ = forked(linger, folder, *command, spot, recipes[recipe][spot], lingering)
        while not (folder / "here").exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), f"{recipe} has no such {spot}"
            time.sleep(0.01)
        for _ in range(times):
            time.sleep(0.1)
            os.kill(child, number)
        begin = time.monotonic()
        counts["signals"] += 1
        counts["other status"] += wait(child) != 128 + number
        said = (folder / "log").read_text()
        assert "Traceback" not in said, said
        return time.monotonic() - begin

    for recipe in recipes:
        for spot, number in itertools.product(recipes[recipe], signals):
            folder = root / f"{recipe} {spot} {number}"
            if spot == "sampling":
                shutil.copytree(root / "whole_minibatch", folder)
            counts["over ten seconds"] += send(folder, recipe, spot, number, times=1) > 10
            if spot == "reading the list":
                assert not (folder / LAST).exists()
            elif spot != "sampling":
                status, log = wait(forked(fit, folder, flags[recipe], None, True)[0]), folder / "log"
                assert status == 0 or "this run is finished" in log.read_text(), log.read_text()
                counts["other final state"] += digest(folder / LAST) != whole[recipe]
    if "a validation" in spots:
        for number in signals:
            folder = root / f"twice_{number}"
            send(folder, "minibatch", "a validation", number, times=2)
            counts["second not at once"] += " at once" not in (folder / "log").read_text()
            assert wait(forked(fit, folder, flags["minibatch"], None, True)[0]) == 0
            counts["other final state"] += digest(folder / LAST) != whole["minibatch"]
    return counts


OWN = {
    "lr, epochs of seven": "--data.steps_per_epoch 7 --model.lr 0.02",
    "by step, clipped": f"{MINIBATCH} {BY_STEP} --trainer.gradient_clip_val 0.5",
    "accumulated": f"{MINIBATCH} --trainer.accumulate_grad_batches 2",
    "blocks": f"{BLOCKS} --data.steps_per_epoch 10",
    "64 bits, another order": f"{MINIBATCH} --trainer.precision 64-true --data.order_seed 3 --model.schedule halfway",
    "cut short, another split": f"{MINIBATCH} --trainer.limit_train_batches 4 --data.split_seed 5",
}
"""Recipes that differ from the defaults; each run is over after 30 updates."""


def resume_own_recipe(root, number, deadline=float("inf")):
    """Kills runs at a random step; a run that resumes is told nothing but `--ckpt_path last`."""
    counts = {UNTRIED: 0, "runs killed": 0, "other end": 0, "other final state": 0, "config changed": 0}
    whole = {}
    for run in range(number):
        if time.monotonic() > deadline:
            counts[UNTRIED] += 1
            continue
        recipe = list(OWN)[run % len(OWN)]
        flags, folder = f"{SMALL} {OWN[recipe]} --trainer.max_steps 30", root / str(run)
        if recipe not in whole:
            assert wait(forked(fit, root / recipe, flags)[0]) == 0, (root / recipe / "log").read_text()
            whole[recipe] = digest(root / recipe / LAST), len(batches(root / recipe))
        expected, length = whole[recipe]
        while not (folder / LAST).exists():  # at which it is killed, and later than the first checkpoint
            shutil.rmtree(folder, ignore_errors=True)
            assert wait(forked(fit, folder, flags, random.randrange(length))[0]) == -signal.SIGKILL
        config = next(folder.rglob("config.yaml")).read_bytes()
        status, said = done(folder, "fit", "--ckpt_path", "last")
        assert status == 0 or "this run is finished" in said, said
        counts["runs killed"] += 1
        counts["other end"] += torch.load(folder / LAST, weights_only=True)["global_step"] != 30
        counts["other final state"] += digest(folder / LAST) != expected
        counts["config changed"] += next(folder.rglob("config.yaml")).read_bytes() != config
        shutil.rmtree(folder)
    return counts


EARLY = (
    "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 1, min_delta: 10}}]}"
)


def resume_after_early_stopping(root, recipes=tuple(RECIPES), deadline=float("inf")):
    """Resumes runs that EarlyStopping ended: with nothing, with its config, and with more epochs."""
    counts = {UNTRIED: 0, "resumed": 0, "trained on": 0, "files changed": 0}
    for recipe in recipes:
        folder = root / recipe
        folder.mkdir(parents=True)
        (folder / "early.yaml").write_text(EARLY)
        line = f"fit --config early.yaml {SMALL} {RECIPES[recipe]} --trainer.max_epochs 9".split()
        status, said = done(folder, *line)
        assert status == 0, said
        before, step = files(folder), torch.load(folder / LAST, weights_only=True)["global_step"]
        for more in ([], ["--config", "early.yaml"], ["--trainer.max_epochs", 20]):
            if time.monotonic() > deadline:
                counts[UNTRIED] += 1
                continue
            status, said = done(folder, "fit", "--ckpt_path", "last", *more)
            counts["resumed"] += 1
            counts["trained on"] += status != 2 or f"EarlyStopping ended it at step {step:,}" not in said
            counts["files changed"] += files(folder) != before
    return counts


def kill_during_output(root, number, checkpoint, deadline=float("inf")):
    """Kills `predict --sample.output` at random times, every other time not before it has opened a file."""
    counts = {UNTRIED: 0, "commands killed": 0, "incomplete": 0, "unfinished files": 0, "litter after the next run": 0}
    line = ["predict", "--ckpt_path", checkpoint, "--sample.num_names", 300_000, "--sample.output", "names.txt"]
    begin = time.monotonic()
    status, said = done(root / "whole", *line)
    assert status == 0, said
    seconds, whole = time.monotonic() - begin, (root / "whole" / "names.txt").read_bytes()
    for run in range(number):
        if time.monotonic() > deadline:
            counts[UNTRIED] += 1
            continue
        folder, before = root / str(run), None
        folder.mkdir()
        if run % 4 > 1:
            before = b"those of an earlier run\n"
            (folder / "names.txt").write_bytes(before)
        child, begin = forked(command, folder, line)
        if run % 2:
            while not list(folder.glob(".*")) and time.monotonic() - begin < seconds:
                time.sleep(0.001)
        time.sleep(random.uniform(0, seconds / (3 if run % 2 else 1)))
        os.kill(child, signal.SIGKILL)
        killed = wait(child) == -signal.SIGKILL
        counts["commands killed"] += killed
        seconds *= 1 if killed else 0.8
        names = folder / "names.txt"
        counts["incomplete"] += (names.read_bytes() if names.exists() else None) not in (before, whole)
        counts["unfinished files"] += len(list(folder.glob(".*")))
        status, said = done(folder, *line)
        assert status == 0, said
        assert names.read_bytes() == whole
        counts["litter after the next run"] += sum(path.name not in ("names.txt", "log") for path in folder.iterdir())
        shutil.rmtree(folder)
    return counts


def members(session):
    """The processes of a session that live: a zombie does not."""
    living = []
    for path in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            if path.name.isdecimal():
                state, _, _, its_session = (path / "stat").read_text().rsplit(")", 1)[1].split()[:4]
                living += [int(path.name)] if int(its_session) == session and state != "Z" else []
    return living


def kill_first_rank(root, number, deadline=float("inf"), patience=10):
    """Kills the first of two processes 0 to 3 seconds after the other was born; every third time, Ctrl-C to both."""
    counts = {UNTRIED: 0, "runs ended": 0, "processes left": 0}
    if not Path("/proc/self/stat").exists():
        return counts | {UNTRIED: number}
    line = [sys.executable, "-m", "makemore_pl", "fit", *SMALL.split(), "--trainer.max_steps", "1000000"]
    line += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for run in range(number):
        if time.monotonic() > deadline:
            counts[UNTRIED] += 1
            continue
        folder = root / str(run)
        folder.mkdir(parents=True)
        with (folder / "log").open("w") as log:
            first = subprocess.Popen(line, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        while len(members(first.pid)) < 2:
            assert first.poll() is None, (folder / "log").read_text()
            time.sleep(0.002)
        time.sleep(random.uniform(0, 3))
        if run % 3 == 2:
            os.killpg(first.pid, signal.SIGINT)
        else:
            os.kill(first.pid, signal.SIGKILL)
        end = time.monotonic() + patience
        while (first.poll() is None or members(first.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        counts["runs ended"] += 1
        counts["processes left"] += len(members(first.pid))
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    return counts


def save_for_ever(path, checkpoint, temporary):
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    while True:
        checkpointing.WholeCheckpoints().save_checkpoint(checkpoint | {"step": time.monotonic()}, path)


def kill_during_saves(root, number, checkpoint, temporaries):
    """Kills processes that do nothing but save, with the system's temporary files here and elsewhere."""
    counts = {"saves killed": 0, "broken": 0, "unfinished files": 0, "litter after the next start": 0}
    content = torch.load(checkpoint, weights_only=True)
    for run in range(number):
        folder = root / str(run)
        path = folder / "last.ckpt"
        child, _ = forked(save_for_ever, folder, path, content, temporaries[run % len(temporaries)])
        while not path.exists():
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        counts["saves killed"] += wait(child) == -signal.SIGKILL
        try:
            load(path)
        except ValueError:
            counts["broken"] += 1
        counts["unfinished files"] += len(list(folder.glob(".*")))
        checkpointing.remove_litter(folder, checkpointing.LITTER)
        counts["litter after the next start"] += sum(each.name not in ("last.ckpt", "log") for each in folder.iterdir())
        shutil.rmtree(folder)
    return counts


def mutate(content, rng):
    """A copy with something wrong with it, and what that is."""
    size, kind = len(content), rng.choice(["flip", "flip", "truncation", "swap", "block", "byte more"])
    at = rng.randrange(size)
    if kind == "flip":
        return kind, content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == "truncation":
        return kind, content[:at]
    if kind == "byte more":
        return kind, content[:at] + bytes([rng.randrange(256)]) + content[at:]
    length = rng.choice([1, 16, 512, 4096])
    if kind == "block":
        return kind, (content[:at] + bytes(length) + content[at + length :])[:size]
    one, other = sorted([at, rng.randrange(size)])
    length = max(1, min(length, other - one, size - other))
    changed = bytearray(content)
    changed[one : one + length], changed[other : other + length] = (
        content[other : other + length],
        content[one : one + length],
    )
    return kind, bytes(changed)


def hurt_files(root, number, checkpoint, seed=0):
    """Mutates a checkpoint; none may load."""
    content, rng, path = Path(checkpoint).read_bytes(), random.Random(seed), root / "hurt.ckpt"
    counts = {"mutations": 0, "loaded silently": 0}
    while counts["mutations"] < number:
        kind, hurt = mutate(content, rng)
        if hurt == content:
            continue
        path.write_bytes(hurt)
        counts["mutations"] += 1
        counts[kind] = counts.get(kind, 0) + 1
        with suppress(ValueError):
            load(path)
            counts["loaded silently"] += 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("torture.json"), help="where the counts go")
    parser.add_argument("--share", action="store_true", help="a small share of it, as the tests take")
    options = parser.parse_args()
    output = options.output.absolute()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a resumed run is told no accelerator, and these are for the CPU
    random.seed(1)
    begin = time.monotonic()
    elsewhere = [folder for folder in ("/dev/shm",) if Path(folder).is_dir()]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one = root / "one"
        assert wait(forked(fit, one, f"{TOY} {RECIPES['minibatch']}")[0]) == 0, (one / "log").read_text()
        checkpoint, temporaries = one / LAST, [str(root), *elsewhere]

        def by(seconds):
            """The end of a kind's share of the time, from when it begins."""
            return time.monotonic() + seconds

        if options.share:
            few = "counted", "blocks", "minibatch, by step", "accumulation", "epochs cut short"
            parts = {
                "mutations of a checkpoint": lambda: hurt_files(root, 300, checkpoint),
                "kill -9 during saves": lambda: kill_during_saves(root / "saves", 20, checkpoint, temporaries),
                "kill -9 during predict --sample.output": lambda: kill_during_output(root / "output", 4, one / BEST),
                "signals": lambda: interrupt(
                    root / "signals", ("a step", "a validation", "a save"), {"blocks": {"a step": 3}}
                ),
                "another split": lambda: tampering.resume_on_other_words(root / "split", every=8),
                "SLURM's file": lambda: tampering.plant_requeued(root / "slurm", every=8),
                "planted links": lambda: tampering.plant_links(root / "links", 3, one),
                "kill -9 of the first of two processes": lambda: kill_first_rank(root / "ranks", 2, patience=60),
                "resumed after EarlyStopping": lambda: resume_after_early_stopping(root / "early", few[:2]),
                "resumed with its own recipe": lambda: resume_own_recipe(root / "own", len(OWN)),
                "kill -9 at every step": lambda: kill_at_every_step(root / "steps", few, every=12),
                "kill -9 at random times": lambda: kill_at_random_times(root / "random", 2, SHORT),
            }
        else:
            parts = {
                "mutations of a checkpoint": lambda: hurt_files(root, 1000, checkpoint),
                "kill -9 during saves": lambda: kill_during_saves(root / "saves", 200, checkpoint, temporaries),
                "kill -9 during predict --sample.output": lambda: kill_during_output(
                    root / "output", 40, one / BEST, by(70)
                ),
                "signals": lambda: interrupt(root / "signals", more=OTHER_SPOTS),
                "another split": lambda: tampering.resume_on_other_words(root / "split", deadline=by(60)),
                "SLURM's file": lambda: tampering.plant_requeued(root / "slurm", deadline=by(80)),
                "planted links": lambda: tampering.plant_links(root / "links", 60, one, by(50)),
                "kill -9 of the first of two processes": lambda: kill_first_rank(root / "ranks", 12, by(110)),
                "resumed after EarlyStopping": lambda: resume_after_early_stopping(root / "early", deadline=by(40)),
                "resumed with its own recipe": lambda: resume_own_recipe(root / "own", 40, by(60)),
                "kill -9 at random times": lambda: kill_at_random_times(root / "random", 20, REAL, by(110)),
                "kill -9 at every step": lambda: kill_at_every_step(root / "steps", deadline=begin + 60 * MINUTES),
            }
        results = {}
        for name, part in parts.items():
            start = time.monotonic()
            results[name] = part()
            print(f"{name}: {results[name]}, {time.monotonic() - start:.0f} s", flush=True)
    output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
