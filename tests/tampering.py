"""Kinds of `make torture` with changed or foreign input: another split, SLURM's file, planted links."""

import itertools
import os
import pickle
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import torch
from forks import BEST, CHECKPOINTS, LAST, MINIBATCH, QUIET, SMALL, command, digest, done, files, forked, wait

ROOT = Path(__file__).parent.parent
UNTRIED = "not tried for want of time"
MORE = "--trainer.max_epochs", "4"


def train(folder, flags):
    status, said = done(folder, "fit", *flags.split())
    assert status == 0, said


# Other words.

ASKED = {
    "split_seed": ["--data.split_seed", "7"],
    "num_words": ["--data.num_words", "30"],
    "val_fraction": ["--data.val_fraction", "0.2", "--data.train_fraction", "0.7"],
    "train_fraction": ["--data.train_fraction", "0.5"],
    "unique": ["--data.unique", "true"],
    "hashed": ["--data.split", "hashed"],
}
LISTS = {
    "a word more": lambda words: [*words, "zoe"],
    "a word less": lambda words: words[:-1],
    "another word": lambda words: ["zoe", *words[1:]],
    "another order": lambda words: words[::-1],
}


def resume_on_other_words(root, every=1, deadline=float("inf")):
    """Resumes and evaluates with another split, and with a changed list: each is to be refused."""
    counts = {UNTRIED: 0, "commands": 0, "accepted": 0, "files changed": 0}
    base, names = root / "base", (ROOT / "names.txt").read_text(encoding="utf-8").split("\n")
    base.mkdir(parents=True)
    words = names[:40] + names[:8]  # of which some are there twice, so that `unique` splits in another way
    (base / "words.txt").write_text("\n".join(words))
    flags = f"{SMALL.replace('20', '48')} --data.path words.txt {MINIBATCH} --trainer.max_epochs 3"
    train(base, flags)
    commands = {
        "fit": ["fit", "--ckpt_path", "last", *MORE, *QUIET.split()],
        "fit from a file": ["fit", "--ckpt_path", LAST, *MORE, *QUIET.split()],
        "validate": ["validate", "--ckpt_path", BEST, "--trainer.accelerator", "cpu"],
        "test": ["test", "--trainer.accelerator", "cpu"],
    }
    for line in commands.values():  # without another split all of them work
        shutil.copytree(base, root / "same")
        status, said = done(root / "same", *line)
        assert status == 0, said
        shutil.rmtree(root / "same")
    cases = [(*commands[name], *asked) for name in commands for asked in ASKED.values()]
    cases += [(*line, changed) for line in commands.values() for changed in LISTS.values()]
    for case in cases[::every]:
        if time.monotonic() > deadline:
            counts[UNTRIED] += 1
            continue
        folder = root / "other"
        shutil.copytree(base, folder)
        if callable(case[-1]):
            *case, change = case
            (base / "words.txt").write_text("\n".join(change(words)))  # the checkpoint has its absolute path
        before = files(folder)
        status, said = done(folder, *case)
        counts["commands"] += 1
        counts["accepted"] += status != 2 or "finished" in said
        counts["files changed"] += files(folder) != before
        shutil.rmtree(folder)
        (base / "words.txt").write_text("\n".join(words))
    return counts


# SLURM's file.

SLURM = {"JOB_ID": 17, "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
REQUEUED = "hpc_ckpt_1.ckpt"


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def plant_requeued(root, every=1, deadline=float("inf")):
    """Runs every command under SLURM's variables beside a checkpoint of a requeued job, hostile or of another run.

    What each command prints and writes must be what it does without that file and those variables.
    """
    counts = {UNTRIED: 0, "commands": 0, "code ran": 0, "other result": 0, "not named": 0}
    base, other, canary = root / "base", root / "another run", root / "canary"
    train(base, f"{SMALL} {MINIBATCH} --trainer.max_epochs 3")
    train(other, f"{SMALL} {MINIBATCH} --trainer.max_epochs 2 --model.seed 5")
    genuine = torch.load(other / LAST, weights_only=True)
    planted = {name: root / f"{name}.ckpt" for name in ("hostile", "hostile pickle", "genuine")}
    torch.save(genuine | {"callbacks": Canary(canary)}, planted["hostile"])
    planted["hostile pickle"].write_bytes(pickle.dumps(Canary(canary)))
    shutil.copy(other / LAST, planted["genuine"])
    for name in ("hostile", "hostile pickle"):  # read as pickles they do act
        with suppress(Exception):
            torch.load(planted[name], weights_only=False)
        assert canary.exists()
        canary.unlink()

    commands = {
        "fit": ["fit", *f"{SMALL} {MINIBATCH} --trainer.max_epochs 3 --model.seed 3".split()],
        "fit without checkpoints": ["fit", *f"{SMALL} --trainer.enable_checkpointing false".split(), *MORE],
        "fast_dev_run": ["fit", *SMALL.split(), "--trainer.fast_dev_run", "true"],
        "resumed": ["fit", "--ckpt_path", "last", *MORE, *QUIET.split()],
        "predict": ["predict", "--ckpt_path", BEST, "--sample.num_names", 50],
        "predict from the newest": ["predict", "--sample.num_names", 50],
        "validate": ["validate", "--ckpt_path", BEST, "--trainer.accelerator", "cpu"],
        "test": ["test", "--ckpt_path", BEST, "--trainer.accelerator", "cpu"],
        "lr_find": ["lr_find", *QUIET.split(), "--data.num_words", 20, "--model.hidden_size", 8, "--num_steps", 10],
        "export": ["export", "--ckpt_path", BEST, "--output", "page.html"],
    }

    def result(folder, line, environment=None):
        """The exit status, stdout, and the checkpoints and pages that are there; then what was said."""
        status, said = done(folder, *line, out="out", environment=environment)
        made = {path: digest(folder / path) for path in files(folder) if path.endswith(".ckpt") and path != REQUEUED}
        pages = {path: content for path, content in files(folder).items() if path.endswith(".html")}
        return (status, (folder / "out").read_text(), made, pages), said

    expected = {}
    variables = {f"SLURM_{name}": str(value) for name, value in SLURM.items()}
    cases = list(itertools.product(commands, planted, ({}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"})))
    for name, file, forced in cases[::every]:
        if time.monotonic() > deadline:
            counts[UNTRIED] += 1
            continue
        if name not in expected:
            shutil.copytree(base, root / "expected")
            expected[name], said = result(root / "expected", commands[name])
            assert expected[name][0] == 0, said
            shutil.rmtree(root / "expected")
        folder = root / "expected"  # of the same name, should a path be in a result
        shutil.copytree(base, folder)
        shutil.copy(planted[file], folder / REQUEUED)
        found, said = result(folder, commands[name], variables | forced)
        counts["commands"] += 1
        counts["code ran"] += canary.exists()
        counts["other result"] += found != expected[name]
        counts["not named"] += REQUEUED not in said
        canary.unlink(missing_ok=True)
        shutil.rmtree(folder)
    return counts


# Links.

PREDICTABLE = ".{name}.{pid}", ".{name}.{pid}.partial", ".{name}.partial", ".{name}.tmp", ".{name}"


def run_among_links(line, folder, names, victims):
    """Runs a command line after links were planted under the names that its temporary files could have."""
    for pattern, name in itertools.product(PREDICTABLE, names):
        link, victim = folder / pattern.format(name=name, pid=os.getpid()), victims[len(pattern) % 2]
        if not link.is_symlink():
            link.symlink_to(victim)
    command(line)


def race(folder, victims, report):
    """Replaces every temporary file by a link, as soon as it is seen."""
    turn = itertools.cycle(victims)
    while True:
        for entry in os.scandir(folder):
            if entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    Path(entry.path).unlink()
                    Path(entry.path).symlink_to(next(turn))
                    with report.open("a") as file:
                        file.write(f"{entry.name}\n")


def plant_links(root, number, trained, deadline=float("inf")):
    """Plants links to files elsewhere for the temporary files of checkpoints, exports and names.

    Args:
        root: a new folder for it.
        number: of commands; every other one is also raced by a process that watches the folder.
        trained: the folder of a run.
        deadline: when to stop.
    """
    counts = {UNTRIED: 0, "commands": 0, "links planted": 0, "files raced": 0, "files elsewhere written": 0}
    outside = root / "outside"
    outside.mkdir(parents=True)
    (outside / "precious").write_text("precious")
    victims = outside / "precious", outside / "absent"
    commands = [
        (["predict", "--sample.num_names", 100_000, "--sample.output", "names.txt"], ".", ["names.txt"]),
        (["fit", "--ckpt_path", "last", *MORE, *QUIET.split()], CHECKPOINTS, ["last.ckpt", "best.ckpt", "probe"]),
        (["export", "--output", "page.html"], ".", ["page.html"]),
    ]
    for run in range(number):
        if time.monotonic() > deadline:
            counts[UNTRIED] += 1
            continue
        folder, report, (line, place, names) = root / str(run), root / "raced", commands[run % len(commands)]
        shutil.copytree(trained, folder)
        report.write_text("")
        watcher = None
        if run % 2:
            watcher, _ = forked(race, root / "watcher", folder / place, victims, report)
        child, _ = forked(run_among_links, folder, line, folder / place, names, victims)
        wait(child)  # it may fail, if its file was taken away
        if watcher is not None:
            os.kill(watcher, signal.SIGKILL)
            wait(watcher)
        counts["commands"] += 1
        counts["links planted"] += len(PREDICTABLE) * len(names)
        counts["files raced"] += len(report.read_text().splitlines())
        left = {path.name: path.read_bytes() for path in outside.iterdir()}
        counts["files elsewhere written"] += left != {"precious": b"precious"}
        victims[1].unlink(missing_ok=True)
        victims[0].write_text("precious")
        shutil.rmtree(folder)
    return counts
