import errno
import hashlib
import itertools
import os
import random
import re
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch
from lightning.pytorch import LightningModule

from makemore_pl import MLP
from makemore_pl.checkpoint import BrokenCheckpointError, load
from makemore_pl.durable import files
from makemore_pl.durable.checkpoints import RunFolder, WholeCheckpoints, lock
from makemore_pl.durable.runs import newest

# Files.


@pytest.fixture
def checkpoint(tmp_path):
    state = {
        "state_dict": MLP(hidden_size=8).state_dict(),
        "hyper_parameters": dict(MLP(hidden_size=8).hparams),
        "global_step": 7,
    }
    WholeCheckpoints().save_checkpoint(state, tmp_path / "one.ckpt")
    return tmp_path / "one.ckpt"


def test_a_sealed_checkpoint_is_read_by_torch_and_by_zip(checkpoint):
    assert torch.load(checkpoint, weights_only=True)["global_step"] == load(checkpoint)["global_step"] == 7
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None
        name, kind, digest = archive.comment.decode().split()
    content = checkpoint.read_bytes()
    assert (name, kind) == ("makemore_pl", "sha256")
    assert digest == hashlib.sha256(content.removesuffix(digest.encode())).hexdigest()
    assert [path.name for path in checkpoint.parent.iterdir()] == ["one.ckpt"]


def test_each_bit_and_each_length_counts(checkpoint):
    content = checkpoint.read_bytes()
    size = len(content)
    hurt = [content[:n] for n in (0, 1, 64, 146, size // 2, size - 65, size - 64, size - 1)]
    places = itertools.chain(range(0, 200, 13), range(0, size, 997), range(size - 120, size))
    hurt += [content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] for at in places]
    assert len(hurt) >= 150
    for each in hurt:
        checkpoint.write_bytes(each)
        with pytest.raises(BrokenCheckpointError, match=re.escape(str(checkpoint))):
            load(checkpoint)


def test_a_file_without_a_seal_must_be_a_whole_archive(tmp_path):
    path = tmp_path / "foreign.ckpt"
    torch.save({"numbers": torch.arange(1000)}, path)
    assert load(path)["numbers"].sum() == 499500
    content = path.read_bytes()
    at = content.index(torch.arange(500, 510).numpy().tobytes())
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    assert torch.load(path, weights_only=True)["numbers"].sum() != 499500  # torch does not look
    with pytest.raises(ValueError, match="this checkpoint is broken"):
        load(path)


def test_a_disk_that_takes_no_more_keeps_what_it_has(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot be saved \(No space left on device\); what was saved before is kept"):
        WholeCheckpoints().save_checkpoint({"global_step": 8}, checkpoint)
    assert checkpoint.read_bytes() == before
    assert len(list(checkpoint.parent.iterdir())) == 1


# Checkpoints of other programs and versions.


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def without(state, *names):
    return state | {"hyper_parameters": {k: v for k, v in state["hyper_parameters"].items() if k not in names}}


MISFITS = {
    "a list": (lambda state: [1, 2], "not a checkpoint of makemore_pl"),
    "weights alone": (lambda state: state["state_dict"], "not a checkpoint of makemore_pl"),
    "another model": (
        lambda state: {"state_dict": Foreign().state_dict(), "hyper_parameters": {"lr": 0.1}},
        "not a checkpoint of makemore_pl, but of another model (its first tensors: layer.weight, layer.bias)",
    ),
    "an older layout": (
        lambda state: without(state, "embedding_dim", "hidden_size"),
        "a checkpoint of another version of makemore_pl, without embedding_dim, hidden_size: train again",
    ),
    "other tensors": (
        lambda state: state | {"state_dict": {"C": torch.zeros(27, 10)}},
        "a checkpoint of another version of makemore_pl, with the tensors C: train again",
    ),
    "other sizes": (
        lambda state: state | {"state_dict": MLP(hidden_size=9).state_dict()},
        "this checkpoint is inconsistent: W1 is (30, 9), but its hyperparameters give (30, 8)",
    ),
    "another vocabulary": (
        lambda state: state | {"state_dict": MLP("abc", hidden_size=8).state_dict()},
        "this checkpoint is inconsistent: C is (4, 10), but its hyperparameters give (27, 10)",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("command", ["fit", "validate", "predict", "export"])
def test_what_does_not_fit_is_named(command, misfit, checkpoint, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    change, message = MISFITS[misfit]
    torch.save(change(torch.load(checkpoint, weights_only=True) | {"sealed": False}), "other.ckpt")
    flags = ["--output", "page.html"] if command == "export" else []
    status, out, err = call(command, "--ckpt_path", "other.ckpt", *flags)
    assert (status, out, err) == (2, "", f"error: other.ckpt: {message}\n")


def test_a_checkpoint_without_an_optimizer_does_not_resume(checkpoint, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, err = call("fit", "--ckpt_path", "one.ckpt")
    assert status == 2
    assert err.endswith("error: one.ckpt: this checkpoint has no optimizer state to resume with\n")


# The newest may be broken.

RUN = Path("lightning_logs", "version_0", "checkpoints")


@pytest.fixture
def runs(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for step in (2, 4):
        quick = "--data.num_words", 50, "--model.hidden_size", 8, "--trainer.max_steps", step
        assert call("fit", *quick, "--model.schedule", "constant")[0] == 0
    return RUN, Path("lightning_logs", "version_1", "checkpoints")


def break_(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    times = path.stat().st_atime, path.stat().st_mtime
    path.write_bytes(content)
    os.utime(path, times)


def test_the_best_stays_the_best_from_another_folder(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--data.num_words", 200, "--model.hidden_size", 8, "--model.schedule", "constant", "--pictures", "false"]
    flags += ["--data.steps_per_epoch", 5]
    status, _, err = call("fit", *flags, "--trainer.default_root_dir", "runs", "--trainer.max_steps", 20)
    assert status == 0, err
    best = tmp_path / "runs/lightning_logs/version_0/checkpoints/best.ckpt"
    before = best.read_bytes()
    monkeypatch.chdir(tmp_path / "runs")
    worse = ["--ckpt_path", "last", "--model.lr", 9, "--trainer.max_steps", 25]  # steps that lead away
    status, _, err = call("fit", *flags, *worse)
    assert status == 0, err
    assert best.read_bytes() == before
    state = torch.load(best.with_name("last.ckpt"), weights_only=True)["callbacks"]
    (best_state,) = (each for each in state.values() if each.get("best_k_models") and each["monitor"] == "val/loss")
    assert Path(best_state["best_model_path"]).samefile(best)
    assert sorted(path.name for path in best.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_the_checkpoint_before_replaces_a_broken_one(runs, call):
    older, newer = runs
    on = "--trainer.max_steps", 6
    lines = []
    for broken, instead, step in [
        (newer / "last.ckpt", newer / "best.ckpt", 4),
        (newer / "best.ckpt", older / "last.ckpt", 2),
        (older / "last.ckpt", older / "best.ckpt", 2),
    ]:
        break_(broken)
        warning = f"warning: {newer / 'last.ckpt'}: this checkpoint is broken: its checksum does not match; "
        lines.append(f"{warning}taking {instead}, step {step}, instead")
        status, _, err = call("predict", "--ckpt_path", "last")
        assert (status, err.splitlines()[:2]) == (0, [lines[-1], f"checkpoint: {instead}"])
    status, _, err = call("fit", "--ckpt_path", "last", *on)
    assert status == 0
    assert lines[-1] in err
    assert f"resuming {older / 'best.ckpt'}, step 2\n" in err
    assert load(older / "last.ckpt")["global_step"] == 6
    assert call("predict", "--ckpt_path", newer / "last.ckpt")[0] == 2  # who names a file gets no other


def test_where_all_are_broken_the_newest_is_named(runs, call):
    for folder in runs:
        for path in folder.glob("*.ckpt"):
            break_(path)
    broken = f"{runs[1] / 'best.ckpt'}: this checkpoint is broken: its checksum does not match"
    assert call("predict") == (2, "", f"error: {broken}\n")
    assert not list(Path("lightning_logs").glob("version_2"))


@pytest.mark.parametrize("limit", [("max_steps", 4), ("max_epochs", 2)])
def test_a_finished_run_says_so(limit, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, value = limit
    quick = "--data.num_words", 50, "--model.hidden_size", 8, "--data.steps_per_epoch", 2, f"--trainer.{name}", value
    assert call("fit", *quick)[0] == 0
    status, _, err = call("fit", "--ckpt_path", "last", f"--trainer.{name}", value)
    finished = f"{RUN / 'last.ckpt'}: this run is finished, at step 4; to resume it, raise --trainer.{name}"
    assert (status, err) == (2, f"error: {finished}\n")


def test_a_run_that_early_stopping_ended_is_finished(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = """
data: {num_words: 50, steps_per_epoch: 2}
model: {hidden_size: 8, lr: 9, schedule: constant}
trainer:
  max_steps: 1000
  callbacks:
    - class_path: EarlyStopping
      init_args: {monitor: val/loss, patience: 2}
    - class_path: ModelCheckpoint
      init_args: {monitor: val/loss, save_top_k: 3, filename: "{step}"}
"""
    Path("recipe.yaml").write_text(recipe)
    status, _, err = call("fit", "--config", "recipe.yaml", "--pictures", "false")
    assert status == 0, err
    step = load(RUN / "last.ckpt")["global_step"]
    assert 2 < step < 1000
    own = {path.name for path in RUN.iterdir()} - {"best.ckpt", "last.ckpt"}
    assert len(own) == 3
    for _ in range(2):
        status, _, err = call("fit", "--config", "recipe.yaml", "--ckpt_path", "last")
        finished = f"{RUN / 'last.ckpt'}: this run is finished: EarlyStopping ended it at step {step}"
        assert (status, err) == (2, f"error: {finished}\n")


MISTAKEN = {
    "EarlyStopping": "{monitor: val/lass}",
    "BackboneFinetuning": "{unfreeze_backbone_at_epoch: 1}",
}


@pytest.mark.parametrize("callback", MISTAKEN)
def test_a_callback_that_misses_something_is_one_line(callback, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init = f"class_path: {callback}, init_args: {MISTAKEN[callback]}"
    Path("recipe.yaml").write_text(f"trainer: {{max_steps: 9, callbacks: [{{{init}}}]}}\ndata: {{num_words: 50}}\n")
    status, _, err = call("fit", "--config", "recipe.yaml")
    assert status == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err


# The folder.


def test_runs_that_start_together_take_folders_of_their_own(tmp_path):
    loggers = [RunFolder(tmp_path, "lightning_logs") for _ in range(40)]
    start = threading.Barrier(len(loggers))
    with ThreadPoolExecutor(len(loggers)) as pool:
        taken = list(pool.map(lambda logger: (start.wait(), logger.version)[1], loggers))
    assert sorted(taken) == list(range(40))
    assert RunFolder(tmp_path, "lightning_logs", "version_3").version == "version_3"


def test_fits_that_start_together_both_end_whole(command, tmp_path):
    arguments = "fit", "--data.num_words", 50, "--model.hidden_size", 8, "--trainer.max_steps", 60
    with ThreadPoolExecutor(2) as pool:
        fits = list(pool.map(lambda seed: command(*arguments, "--model.seed", seed, cwd=tmp_path), (1, 2)))
    assert [fit.returncode for fit in fits] == [0, 0], [fit.stderr for fit in fits]
    seeds = set()
    for folder in RUN, Path("lightning_logs", "version_1", "checkpoints"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["best.ckpt", "last.ckpt"]
        found = [load(tmp_path / folder / name) for name in ("best.ckpt", "last.ckpt")]
        assert found[1]["global_step"] == 60
        (seed,) = {each["hyper_parameters"]["seed"] for each in found}
        seeds.add(seed)
    assert seeds == {1, 2}


def test_a_run_draws_from_no_generator_of_the_process(call, monkeypatch, tmp_path):
    """So that none need be saved: each order, weight and name comes from a seed of its own."""
    monkeypatch.chdir(tmp_path)

    def states():
        return random.getstate(), torch.get_rng_state().tolist(), str(numpy.random.get_state())

    before = states()
    for flags in ((), ("--data.batch_size", 16, "--trainer.accumulate_grad_batches", 2)):
        assert call("fit", "--data.num_words", 50, "--trainer.max_steps", 4, *flags)[0] == 0
    assert states() == before


@pytest.mark.skipif(files.fcntl is None, reason="needs fcntl, which Windows has not")
def test_a_run_that_resumes_in_its_folder_locks_it(runs, call):
    held = lock(runs[1])
    before = {path: path.read_bytes() for path in runs[1].iterdir()}
    status, _, err = call("fit", "--ckpt_path", "last", "--trainer.max_steps", 9)
    assert status == 2
    assert f"error: {runs[1]}: another run writes its checkpoints there; wait for its end\n" in err.replace("./", "")
    assert {path: path.read_bytes() for path in runs[1].iterdir()} == before
    os.close(held)
    assert call("fit", "--ckpt_path", "last", "--trainer.max_steps", 9)[0] == 0


@pytest.mark.skipif(files.fcntl is None, reason="needs fcntl, which Windows has not")
def test_the_next_start_removes_what_killed_runs_left(runs, call):
    litter = [folder / ".last.ckpt.0123456789abcdef.partial" for folder in runs]
    for path in litter:
        path.touch()
    with litter[0].open() as file:  # a process that still writes it
        files.fcntl.flock(file, files.fcntl.LOCK_EX)
        assert call("fit", "--data.num_words", 50, "--trainer.max_steps", 1)[0] == 0
        assert [path.exists() for path in litter] == [True, False]
    assert call("fit", "--data.num_words", 50, "--trainer.max_steps", 1)[0] == 0
    assert [path.exists() for path in litter] == [False, False]


@pytest.mark.parametrize("flags", [(), ("--trainer.logger", "false")])
def test_what_others_left_is_theirs(flags, call, tmp_path, monkeypatch):
    (tmp_path / "home" / "project").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "project")
    theirs = [
        Path("..", "other", "checkpoints", ".movie.partial"),
        Path("..", "other", "checkpoints", ".last.ckpt.0123456789abcdef.partial"),
        Path("checkpoints", ".movie.partial"),
        Path("lightning_logs", "mine", "checkpoints", ".last.ckpt.0123456789abcdef.partial"),
        Path("lightning_logs", "version_0", "checkpoints", ".movie.partial"),
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert call("fit", "--data.num_words", 50, "--trainer.max_steps", 1, *flags)[0] == 0
    assert [path for path in theirs if not path.exists()] == []


def used(finished):
    """The checkpoint that a command names first."""
    status, _, err = finished
    assert status == 0, err
    return Path(err.splitlines()[0].removeprefix("checkpoint: "))


def test_a_link_that_leads_nowhere_is_passed_over(runs, call):
    dangling = Path("lightning_logs", "version_7", "checkpoints", "best.ckpt")
    dangling.parent.mkdir(parents=True)
    dangling.symlink_to("/nowhere")
    assert used(call("predict")) == runs[1] / "best.ckpt"


def test_python_finds_the_newest_run(runs, tmp_path, monkeypatch):
    assert newest() == runs[1] / "best.ckpt"
    assert newest("last") == runs[1] / "last.ckpt"
    os.utime(runs[0] / "best.ckpt")  # resumed, for example: the number of a run does not tell its age
    assert newest() == runs[0] / "best.ckpt"
    (runs[0] / "best.ckpt").unlink()
    os.utime(runs[0] / "last.ckpt")
    assert newest() == runs[0] / "last.ckpt"
    monkeypatch.chdir("/")
    assert newest(root=tmp_path) == tmp_path / runs[0] / "last.ckpt"
    with pytest.raises(FileNotFoundError, match=r"no run found in .*/lightning_logs; train first"):
        newest(root=tmp_path / "lightning_logs")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_found_before_the_first_step(small_disk, call):
    flags = "--data.num_words", 50, "--trainer.default_root_dir", small_disk, "--model.hidden_size", 1000
    status, out, err = call("fit", *flags)
    assert (status, out) == (2, "")
    folder = small_disk / RUN
    assert err.endswith(f"error: {folder}: no checkpoint can be saved there (No space left on device)\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "tensors", "width"),
    [
        ([], 3, 4),
        (["--trainer.precision", "64-true"], 3, 8),
        (["--trainer.accumulate_grad_batches", 2, "--data.batch_size", 8], 3, 4),
    ],
)
def test_as_much_room_as_the_checkpoints_will_take_is_asked_for(flags, tensors, width, call, tmp_path, monkeypatch):
    asked = []

    def full(file, offset, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    status, out, err = call("fit", "--data.num_words", 50, *flags)
    assert (status, out) == (2, "")
    assert err.endswith(f"error: {RUN}: no checkpoint can be saved there (No space left on device)\n")
    # `best`, `last`, and one more while it is written, of 11,897 parameters each.
    assert asked == [3 * (tensors * width * 11897 + 2**15)]
    assert list((tmp_path / RUN).iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(small_disk, call, monkeypatch):
    flags = "--data.num_words", 50, "--trainer.default_root_dir", small_disk, "--model.hidden_size", 100
    flags += "--pictures", "false"  # they would fill it first
    fsync, saved = os.fsync, []

    def fill_up(file):
        saved.append(fsync(file))
        if len(saved) == 8:
            with Path(small_disk, "other").open("wb", buffering=0) as other, pytest.raises(OSError):
                while True:
                    other.write(bytes(1000))

    monkeypatch.setattr(os, "fsync", fill_up)
    status, out, err = call("fit", *flags, "--trainer.max_steps", 1000)
    assert (status, out) == (2, "")
    assert re.search(r"error: \S+: cannot be saved \(No space left on device\); what was saved before is kept\n$", err)
    steps = {path.name: load(path)["global_step"] for path in (small_disk / RUN).iterdir()}
    assert steps == {"best.ckpt": 25, "last.ckpt": 75}


def test_a_folder_that_cannot_be_written_is_said_in_one_line(small_disk, call):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    status, out, err = call("fit", "--data.num_words", 50, "--trainer.default_root_dir", small_disk)
    assert (status, out) == (2, "")
    assert err.endswith(f"error: {small_disk / 'lightning_logs'}: read-only file system\n")


# Runs with other names.

OVERWRITTEN = "logs/exp1/mine/metrics.csv"
OVER = "exists, and this run would write over it; move it, or use another name"
LOGGERS = {
    "another name": "{class_path: TensorBoardLogger, init_args: {save_dir: ., name: exp1}}",
    "another kind": "{class_path: CSVLogger, init_args: {save_dir: logs}}",
    "both": "[{class_path: CSVLogger, init_args: {save_dir: logs/, name: exp1, version: mine}}]",
    "none": "false",
}


@pytest.mark.parametrize("logger", LOGGERS)
def test_the_newest_run_is_found_however_it_is_named(logger, runs, call):
    Path("recipe.yaml").write_text(f"trainer: {{logger: {LOGGERS[logger]}}}\n")
    before = set(Path.cwd().rglob("*.ckpt"))
    quick = "--data.num_words", 50, "--model.hidden_size", 8, "--trainer.max_steps", 3
    status, _, err = call("fit", "--config", "recipe.yaml", *quick)
    assert status == 0, err
    best, last = sorted(set(Path.cwd().rglob("*.ckpt")) - before)
    assert (best.name, last.name) == ("best.ckpt", "last.ckpt")
    assert used(call("predict")) == best.relative_to(Path.cwd())
    resume = "fit", "--ckpt_path", "last", "--config", "recipe.yaml", *quick[:-1], 5
    if logger == "both":  # Lightning would write over the log of a version with a name
        assert call(*resume)[::2] == (2, f"error: {OVERWRITTEN}: {OVER}\n")
        Path(OVERWRITTEN).rename("moved.csv")
    status, _, err = call(*resume)
    assert status == 0, err
    assert f"resuming {last.relative_to(Path.cwd())}, step 3\n" in err


def test_runs_of_another_root_or_program_are_not_found(runs, call, tmp_path):
    quick = "--data.num_words", 50, "--model.hidden_size", 8, "--trainer.max_steps", 3
    assert call("fit", *quick, "--trainer.default_root_dir", "wide")[0] == 0
    foreign = tmp_path / "a" / "b" / "checkpoints" / "last.ckpt"
    foreign.parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, foreign)
    assert used(call("predict", "--ckpt_path", "last")) == runs[1] / "last.ckpt"
    wide = Path("wide") / RUN / "best.ckpt"
    assert used(call("predict", "--trainer.default_root_dir", "wide")) == wide
    status, _, err = call("predict", "--trainer.default_root_dir", "a")
    ours = "lightning_logs/version_*/checkpoints", "checkpoints", "checkpoints-v*"
    places = *ours, "*/*/checkpoints", "*/*/*/checkpoints"
    looked = ", ".join(f"a/{place}" for place in places)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: no checkpoint found: looked in {looked}; train first")
