"""`make torture`: kills runs, hurts files, and counts what was lost. test_torture.py does a small share of it.

Every run is `makemore_pl fit` itself, in a process forked from here so that none has to import anything.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from makemore_pl import MLP
from makemore_pl.checkpoint import load
from makemore_pl.commands import cli
from makemore_pl.commands.predict import NamesWriter
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable import checkpoints as checkpointing

MINUTES = 8
LAST = Path("lightning_logs", "version_0", "checkpoints", "last.ckpt")

TOY = "--data.num_words 20 --model.hidden_size 8 --trainer.accelerator cpu --trainer.log_every_n_steps 3"
TOY += " --trainer.enable_progress_bar false --trainer.max_epochs 3 --pictures false"
MINIBATCH, BLOCKS = "--data.batch_size 16", "--data.batch_size 16 --data.steps_per_execution 3"
BY_STEP = "--trainer.val_check_interval 4 --trainer.check_val_every_n_epoch null"
SGD = "--data.replacement true --model.optimizer sgd --model.lr 0.1"
RECIPES = {
    "counted": "--data.steps_per_epoch 5",
    "counted, in blocks": "--data.steps_per_epoch 5 --data.steps_per_execution 2",
    "minibatch": MINIBATCH,
    "minibatch, by step": f"{MINIBATCH} {BY_STEP}",
    "epochs that are no passes": f"{MINIBATCH} --data.steps_per_epoch 5",
    "blocks": BLOCKS,
    "blocks, replacement, sgd": f"{BLOCKS} {SGD}",
    "replacement, sgd": f"{MINIBATCH} {SGD}",
    "accumulation": f"{MINIBATCH} --trainer.accumulate_grad_batches 3",
    "epochs cut short": f"{MINIBATCH} --trainer.limit_train_batches 4",
    "half epochs": f"{MINIBATCH} --trainer.val_check_interval 0.5",
}
REAL = "--trainer.max_steps 200 --trainer.accelerator cpu --trainer.enable_progress_bar false"
SHORT = REAL.replace("200", "40 --data.steps_per_epoch 10 --data.num_words 2000")


class Witness:
    """Writes down every batch of a training, and kills the process at one of them."""

    def __init__(self, path, kill_at=None):
        self.path, self.kill_at = path, kill_at
        self.train_dataloader = NamesDataModule.train_dataloader
        NamesDataModule.train_dataloader = lambda data: self.watch(self.train_dataloader(data))

    def watch(self, loader):
        batch, block = loader.batch, loader.block

        def note(first, batches):
            if self.kill_at is not None and first <= self.kill_at < first + len(batches):
                os.kill(os.getpid(), signal.SIGKILL)
            with self.path.open("a") as file:
                for number, X in enumerate(batches, first):
                    file.write(f"{number} {hashlib.sha256(X.numpy().tobytes()).hexdigest()[:16]}\n")

        def watched_batch(number):
            found = batch(number)
            note(number, found[:1])
            return found

        def watched_block(first, size):
            found = block(first, size)
            note(first, found[0])
            return found

        loader.batch, loader.block = watched_batch, watched_block
        return loader


def forked(work, folder, *arguments):
    """Does some work in a process of its own, in a folder; gives the exit status and the seconds that it took."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(folder)
            log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            work(*arguments)
            status = 0
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child, begin


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fit(flags, kill_at=None, resume=False):
    Witness(Path("batches"), kill_at)
    sys.argv = ["makemore_pl", "fit", *flags.split(), *(["--ckpt_path", "last"] if resume else [])]
    cli.main()


def flat(state, path=""):
    """All that is in a checkpoint, one line each."""
    if isinstance(state, dict):
        for key in sorted(state, key=str):
            yield from flat(state[key], f"{path}.{key}")
    elif isinstance(state, (list, tuple)):
        for index, each in enumerate(state):
            yield from flat(each, f"{path}[{index}]")
    elif isinstance(state, torch.Tensor):
        content = hashlib.sha256(state.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        yield f"{path} {state.dtype} {tuple(state.shape)} {content}"
    else:
        yield f"{path} {state!r}"


def digest(path):
    """SHA-256 over parameters, optimizer, schedule, counters and best scores."""
    lines = flat(torch.load(path, weights_only=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
        "steps not tried for want of time": 0,
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
            counts["steps not tried for want of time"] += 1
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
    counts = {"runs killed": 0, "other final state": 0}
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
    """Sends signals in the middle of everything; a run goes on from them to the state of one that never stopped."""
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
    random.seed(1)
    deadline = time.monotonic() + 60 * MINUTES
    elsewhere = [folder for folder in ("/dev/shm",) if Path(folder).is_dir()]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one = root / "one"
        assert wait(forked(fit, one, f"{TOY} {RECIPES['minibatch']}")[0]) == 0, (one / "log").read_text()
        checkpoint, temporaries = one / LAST, [str(root), *elsewhere]
        if options.share:
            few = "counted", "blocks", "minibatch, by step", "accumulation", "epochs cut short"
            parts = {
                "mutations of a checkpoint": lambda: hurt_files(root, 300, checkpoint),
                "kill -9 during saves": lambda: kill_during_saves(root / "saves", 20, checkpoint, temporaries),
                "signals": lambda: interrupt(
                    root / "signals", ("a step", "a validation", "a save"), {"blocks": {"a step": 3}}
                ),
                "kill -9 at every step": lambda: kill_at_every_step(root / "steps", few, every=6),
                "kill -9 at random times": lambda: kill_at_random_times(root / "random", 2, SHORT),
            }
        else:
            parts = {
                "mutations of a checkpoint": lambda: hurt_files(root, 1000, checkpoint),
                "kill -9 during saves": lambda: kill_during_saves(root / "saves", 200, checkpoint, temporaries),
                "signals": lambda: interrupt(root / "signals", more=OTHER_SPOTS),
                "kill -9 at random times": lambda: kill_at_random_times(root / "random", 20, REAL, deadline - 300),
                "kill -9 at every step": lambda: kill_at_every_step(root / "steps", deadline=deadline),
            }
        results = {}
        for name, part in parts.items():
            start = time.monotonic()
            results[name] = part()
            print(f"{name}: {results[name]}, {time.monotonic() - start:.0f} s", flush=True)
    output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
