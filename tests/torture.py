"""`make torture`: kills runs, restarts them, hurts checkpoints, and counts what is lost, in five minutes.

Runs are forked from this process, so none takes seconds to import. Exit status 1 says that something was lost.
"""

import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import torch
from lightning_utilities.core.apply_func import apply_to_collection

from makemore_pl.__main__ import main as command_line
from makemore_pl.checkpoints import WholeCheckpoints, read

SECONDS = 270
"""After so long nothing new is tried."""

CPU = "--trainer.accelerator cpu --trainer.enable_progress_bar false"
SMALL = f"{CPU} --data.num_words 60 --model.hidden_size 8 --pictures false"
RANKS = f"{SMALL} --model.schedule constant --data.batch_size 78 --data.steps_per_epoch 20 --trainer.precision 64-true"
RANKS += " --trainer.max_steps 400"
RECIPES = {
    "default": f"{CPU} --trainer.max_steps 150",
    "lecture": f"{CPU} --config lecture --trainer.max_epochs 5 --data.steps_per_epoch 10000",  # blocks of updates
    "minibatches": RANKS,
    "accumulation": f"{SMALL} --data.batch_size 16 --trainer.accumulate_grad_batches 3 --trainer.max_epochs 6",
}
FORK = get_context("fork") if hasattr(os, "fork") else None


def train(folder, line, before):
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)  # pytest has put others there
    sys.argv = ["makemore_pl", *shlex.split(line)]
    before()
    command_line()


def start(folder, line, before=lambda: None):
    """Starts a command line in a folder, where its output goes to `log`, and returns the process."""
    folder.mkdir(parents=True, exist_ok=True)
    process = FORK.Process(target=train, args=(folder, line, before))
    process.start()
    return process


def run(folder, line, before=lambda: None):
    """Runs a command line to its end; gives the exit status, or minus the signal that killed it, and what it said."""
    log = folder / "log"
    size = log.stat().st_size if log.exists() else 0
    process = start(folder, line, before)
    process.join()
    return process.exitcode, log.read_bytes()[size:].decode()


def send_at(number, owner, name, call):
    """Has a process send itself a signal at some call of a function."""
    function, calls = getattr(owner, name), iter(range(1, call + 1))

    def wrapped(*args, **kwargs):
        if next(calls, None) == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def checkpoint(folder, name="last", version=0):
    return folder / f"lightning_logs/version_{version}/checkpoints/{name}.ckpt"


def newest_checkpoint(folder, name="last"):
    """Of a run that may have been killed before it wrote anything but its empty folder."""
    return max(folder.glob(f"lightning_logs/version_*/checkpoints/{name}.ckpt"))


def state(path):
    """All that a run computed: weights, moments, counters, metrics, the best score; no paths."""
    content = torch.load(path, weights_only=True)
    callbacks = {key: each.get("best_model_score", each) for key, each in content["callbacks"].items()}
    names = ["state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", "epoch"]
    kept = {name: content[name] for name in names} | {"callbacks": callbacks}
    return apply_to_collection(kept, torch.Tensor, lambda tensor: (str(tensor.dtype), tensor.numpy().tobytes()))


def torchrun(folder, flags, rng, kills):
    """Trains on two processes of torchrun, kills one now and then, and gives the exit status and what was said."""
    folder.mkdir(parents=True)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts"]
    line += [str(kills), "-m", "makemore_pl", "fit", "--ckpt_path", "last", *shlex.split(flags)]
    line += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    # Otherwise restarted workers find the addresses of dead ones.
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        agent = subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log)
    children, killed = Path(f"/proc/{agent.pid}/task/{agent.pid}/children"), 0
    saved = 0.0
    while killed < kills and agent.poll() is None:
        time.sleep(0.02)
        with suppress(FileNotFoundError, ValueError, IndexError):  # between two starts
            if (path := newest_checkpoint(folder)).stat().st_mtime > saved:  # the run is past its start once more
                time.sleep(rng.uniform(0, 0.5))
                saved = path.stat().st_mtime
                os.kill(int(rng.choice(children.read_text().split())), signal.SIGKILL)
                killed += 1
    return agent.wait(), killed, (folder / "log").read_text()


# What is tried, with a seed. Each returns counts; those that begin with one of LOST ought to be 0.

LOST = ("other status", "other end", "broken", "loaded wrongly", "raised")


def stop(root, seed, recipe, number, seconds):
    """Stops a run at three moments and resumes it by the same command."""
    rng, folder, counts = random.Random(f"{recipe} {number} {seed}"), root / recipe / f"{number} {seed}", Counter()
    line, stopped = f"fit --ckpt_path last {RECIPES[recipe]}", {signal.SIGKILL: -9}.get(number, 128 + number)
    for _ in range(3):
        process = start(folder, line)
        time.sleep(rng.uniform(0.1, seconds / 2))  # the third may meet the end of the run
        os.kill(process.pid, number)
        process.join()
        counts["stopped"] += process.exitcode == stopped
        counts["other status"] += process.exitcode not in (stopped, 0, 2)  # or it has ended before
    status, said = run(folder, line)
    counts["other status"] += status != 0 and "this run is finished" not in said
    for name in ("last", "best"):
        counts["other end"] += state(newest_checkpoint(folder, name)) != state(checkpoint(root / recipe, name))
    return counts


def save_for_ever(path):
    content = read(path)
    while True:
        WholeCheckpoints().save_checkpoint(content | {"time": time.monotonic()}, path)


def kill_during_save(root, seed):
    """Kills a process that does nothing but save."""
    path = root / f"saved {seed}.ckpt"
    path.write_bytes(checkpoint(root / "accumulation").read_bytes())
    process = FORK.Process(target=save_for_ever, args=(path,))
    process.start()
    time.sleep(random.Random(seed).uniform(0.002, 0.05))
    process.kill()
    process.join()
    with suppress(ValueError):
        read(path)
        return {"killed": 1}
    return {"broken": 1}


def mutate(content, rng):
    """Returns a copy in which a bit is flipped, bytes are gone, new, moved or zero."""
    at, to = sorted(rng.sample(range(len(content)), 2))
    size = rng.choice([1, 16, 512, 4096])
    before, after, beyond = content[:at], content[at:], content[at + size :]
    flipped = bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    ends = [flipped, b"", rng.randbytes(size) + after, beyond, bytes(size) + beyond, content[to : to + size] + beyond]
    return before + rng.choice(ends)


def hurt(root, seed):
    """Loads mutations of a checkpoint: each is refused, or gives exactly what was saved."""
    rng, path, counts = random.Random(seed), root / f"hurt {seed}.ckpt", Counter()
    content, whole = checkpoint(root / "accumulation").read_bytes(), state(checkpoint(root / "accumulation"))
    for _ in range(100):
        path.write_bytes(mutate(content, rng))
        try:
            read(path)
            counts["loaded"] += 1
            counts["loaded wrongly"] += state(path) != whole
        except ValueError:
            counts["refused"] += 1
    return counts


def restart(root, seed):
    """Kills a rank under torchrun twice: the job ends by itself, with the weights of one process."""
    status, killed, _ = torchrun(root / f"torchrun {seed}", RANKS, random.Random(seed), 2)
    ours, theirs = (read(newest_checkpoint(root / name))["state_dict"] for name in (f"torchrun {seed}", "minibatches"))
    same = all(torch.allclose(ours[name], weight, rtol=0, atol=1e-12) for name, weight in theirs.items())
    return {"ranks killed": killed, "other status": status != 0, "other end": not same}


def train_whole(root, recipe):
    """Trains without a stop, to compare with, and gives the seconds that it takes."""
    begin = time.monotonic()
    status, said = run(root / recipe, f"fit {RECIPES[recipe]}")
    assert status == 0, said
    return time.monotonic() - begin


def main():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    torch.set_num_threads(1)
    begin, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, FORK) as pool:
        root = Path(folder)
        seconds = dict(zip(RECIPES, pool.map(train_whole, [root] * len(RECIPES), RECIPES), strict=True))
        tasks = [
            (f"{recipe}, {number.name}", stop, root, seed, recipe, number, seconds[recipe])
            for number, times in [(signal.SIGKILL, 6), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
            for recipe in RECIPES
            for seed in range(times)
        ]
        tasks += [("two processes under torchrun, SIGKILL", restart, root, seed) for seed in range(4)]
        tasks += [("SIGKILL of saves", kill_during_save, root, seed) for seed in range(200)]
        tasks += [("mutations of a checkpoint", hurt, root, seed) for seed in range(20)]
        random.Random(0).shuffle(tasks)  # so that every kind has its share of the time
        futures = {pool.submit(*task): name for name, *task in tasks}
        wait(futures, timeout=SECONDS - (time.monotonic() - begin))
        pool.shutdown(cancel_futures=True)
    for future, name in futures.items():
        if not future.cancelled():
            error = future.exception()
            results.setdefault(name, Counter()).update({f"raised: {error!r}": 1} if error else future.result())
    for name, counts in results.items():
        print(f"{name}: {', '.join(f'{number} {what}' for what, number in counts.items())}")
    lost = sum(n for counts in results.values() for what, n in counts.items() if what.startswith(LOST))
    print(f"{lost} lost" if lost else "nothing was lost")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
