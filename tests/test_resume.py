"""A run resumes from any of its checkpoints, after any signal, as if it had not stopped."""

import csv
import os
import re
import shlex
import shutil
import signal
from functools import partial
from itertools import cycle, product
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torture import RECIPES, SMALL, checkpoint, run, send_at, state

from makemore_pl import MLP, NamesDataModule
from makemore_pl.checkpoints import RunCheckpoint, WholeCheckpoints, read

pytestmark = [
    pytest.mark.usefixtures("one_thread", "folder"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

HERE = Path()


@pytest.fixture
def fit(call):
    """Runs `fit` with a line of flags in this process; gives what it said, or the one line of a mistake."""

    def run(line, mistake=False):
        status, out, err = call("fit", *shlex.split(line))
        assert (status, bool(out)) == ((2, False) if mistake else (0, True)), err
        assert not mistake or err.splitlines()[-1].startswith("error: "), err
        return err

    return run


def steps(name="last", version=0):
    return read(checkpoint(HERE, name, version))["global_step"]


def ends(folder=HERE, version=0):
    """All that a run computed, at its best and at its end."""
    return [state(checkpoint(folder, name, version)) for name in ("best", "last")]


# From each checkpoint, with a Trainer of one's own.

DATA = [
    {"steps_per_epoch": 11},
    {"steps_per_epoch": 11, "batch_size": 16},  # a pass takes 17
    {"batch_size": 50},  # an epoch is a pass
    {"steps_per_epoch": 11, "batch_size": 16, "replacement": True},
    {"steps_per_epoch": 11, "smoothing": 0.5},
]
BLOCKS = {"steps_per_epoch": 12, "batch_size": 16, "replacement": True, "steps_per_execution": 4}
IN_BLOCKS = [
    {"max_epochs": 3},
    {"max_epochs": 3, "val_check_interval": 0.5},
    {"max_epochs": 5, "check_val_every_n_epoch": 2},
    {"max_epochs": 3, "limit_val_batches": 0},
    {"max_epochs": 4, "limit_train_batches": 3},
    {"max_epochs": 3, "precision": "64-true"},
]
NOT_IN_BLOCKS = [
    {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None},
    {"max_steps": 30},
    {"max_epochs": 3, "accumulate_grad_batches": 3},
    {"max_steps": 30, "gradient_clip_val": 0.01},
]
CASES = [*zip(cycle(DATA), IN_BLOCKS + NOT_IN_BLOCKS), *product([BLOCKS], IN_BLOCKS)]


class Keep(WholeCheckpoints):
    """Keeps a copy of the folder after each save, as a killed run would leave it."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            shutil.copytree(Path(path).parent, f"kept/{checkpoint['global_step']:03}", dirs_exist_ok=True)


def train(folder, data, length, plugin, ckpt_path=None):
    saving = [RunCheckpoint(Path(folder), "best", "val/loss")] * (length.get("limit_val_batches") != 0)
    saving += [RunCheckpoint(Path(folder), "last", validates=bool(saving))]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(accelerator="cpu", callbacks=saving, plugins=[plugin], **quiet, **length)
    sgd = {"optimizer": "sgd", "lr": 0.1, "schedule": "halfway"} if "steps_per_execution" in data else {}
    trainer.fit(MLP(hidden_size=8, **sgd), NamesDataModule(num_words=60, **data), ckpt_path=ckpt_path)
    return {saved.filename: state(saved.path) for saved in saving if saved.path.exists()}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("data", "length"), CASES, ids=str)
def test_from_each_checkpoint_as_if_it_had_not_stopped(data, length):
    Path("kept").mkdir()
    whole = train("whole", data, length, Keep())
    kept = sorted(Path("kept").iterdir())
    assert len(kept) >= 2
    for folder in kept[:-1]:
        resumed = train(folder, data, length, WholeCheckpoints(), folder / "last.ckpt")
        assert resumed == whole, folder


# After signals, on the command line, in processes of their own.

STOPPED = {
    "counted": f"{SMALL} --data.steps_per_epoch 5 --trainer.max_steps 23",
    "minibatches": f"{SMALL} --data.batch_size 32 --trainer.max_epochs 4",
    "blocks": f"{SMALL} --config lecture --data.steps_per_epoch 12 --data.steps_per_execution 4 --trainer.max_epochs 4",
    "accumulation": RECIPES["accumulation"],
}
PLACES = {
    "a step": (MLP, "training_step", 9),
    "a validation": (MLP, "validation_step", 2),
    "a save, before its bytes are on the disk": (os, "fsync", 5),
    "a save, before the file has its name": (Path, "replace", 4),
}
SIGNALS = cycle([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])


@pytest.fixture(scope="module")
def whole(request, tmp_path_factory):
    """The flags of a recipe, and the end of a run that was not stopped."""
    folder, flags = tmp_path_factory.mktemp("whole"), STOPPED[request.param]
    status, said = run(folder, f"fit {flags}")
    assert status == 0, said
    return flags, ends(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which Windows has not")
@pytest.mark.parametrize(
    ("whole", "place", "number"),
    [(*stop, next(SIGNALS)) for stop in product(STOPPED, PLACES)],  # each signal comes to each place
    indirect=["whole"],
)
def test_a_stopped_run_ends_as_one_that_was_not(whole, place, number):
    flags, end = whole
    status, said = run(HERE, f"fit --ckpt_path last {flags}", partial(send_at, number, *PLACES[place]))
    if number == signal.SIGKILL:
        assert status == -9
    else:
        assert (status, "Traceback" in said) == (128 + number, False)
        assert re.search(rf"(^|\n)stopped by {number.name}; to resume: .*fit --ckpt_path last\n$", said)
    status, said = run(HERE, "fit --ckpt_path last")  # in its folder, with its flags, also if it had saved nothing
    assert status == 0, said
    assert ends() == end
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


# The flags of a resumed run.


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--trainer.logger CSVLogger --trainer.logger.save_dir logs",
        "--trainer.logger false",
        "--trainer.logger lightning.pytorch.loggers.logger.DummyLogger",  # without folders, as those of services are
        "--trainer.default_root_dir 'a folder'",
    ],
)
def test_a_run_goes_on_in_its_folder_with_its_flags(flags, fit, call):
    root = flags if "a folder" in flags else ""
    options = f"{SMALL} --model.schedule constant --data.batch_size 50 --data.steps_per_epoch 5 {flags}"
    fit(f"{options} --trainer.max_steps 10")
    assert "resuming" in fit(f"--ckpt_path last {root} --trainer.max_steps 20")
    (folder,) = Path("a folder" if root else ".", "lightning_logs").glob("version_*/checkpoints")
    resumed, judged = state(folder / "last.ckpt"), call("validate", *shlex.split(root))
    fit(f"{options} --trainer.max_steps 20")
    assert state(folder.parents[1] / "version_1" / "checkpoints" / "last.ckpt") == resumed
    assert call("validate", *shlex.split(root))[:2] == judged[:2]


def test_a_flag_wins_over_that_of_the_run(fit):
    fit(f"{SMALL} --model.lr 0.5 --trainer.max_steps 4")
    log = "--trainer.logger CSVLogger --trainer.logger.save_dir logs --trainer.log_every_n_steps 1"
    fit(f"--ckpt_path last --model.lr 0.9 --model.weight_decay 0.1 --trainer.max_steps 8 {log}")
    with next(Path("logs").rglob("metrics.csv")).open(newline="") as file:
        rates = [float(row["lr-AdamW"]) for row in csv.DictReader(file) if row["lr-AdamW"]]
    # By hand: of eight steps of the linear schedule, those after the fourth have 4/8, 3/8, 2/8 and 1/8 of lr, over 0.9.
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert read(checkpoint(HERE))["hyper_parameters"]["lr"] == 0.9
    assert read(checkpoint(HERE))["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.1


def test_last_without_a_run_starts_one_and_says_so(fit):
    assert "train first" in fit(f"--ckpt_path best {SMALL}", mistake=True)
    assert "starting one" in fit(f"--ckpt_path last {SMALL} --trainer.max_steps 5")


# Longer.

EARLY = "--data.steps_per_epoch 5 --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss"
EARLY += " --trainer.callbacks.min_delta=10 --trainer.callbacks.patience="


@pytest.mark.parametrize(
    ("limit", "flag", "more", "end"),
    [
        ("--trainer.max_steps 7", "--trainer.max_steps", "--trainer.max_steps 12", 12),
        ("--trainer.max_epochs 2", "--trainer.max_epochs", "--trainer.max_epochs 3", 75),
        ("--trainer.max_epochs 2", "--trainer.max_epochs", "--trainer.max_epochs 9 --trainer.max_steps 60", 60),
        # Five updates an epoch; none is better by 10, so after the first one each takes one of the patience.
        (f"{EARLY}2", "EarlyStopping", "--trainer.max_steps 400", 25),
        (f"{EARLY}2 --trainer.max_steps 400", "EarlyStopping", f"{EARLY}5", 40),
    ],
)
def test_a_finished_run_goes_on_if_it_is_given_more(limit, flag, more, end, fit):
    fit(f"{SMALL} {limit}")
    said = fit("--ckpt_path last", mistake=True)
    assert f"finished, at step {steps()}" in said
    assert flag in said
    fit(f"--ckpt_path last {more}")
    assert steps() == end


# Other words, and the same words again.

ONE = f"{SMALL} --data.path one.txt".replace("--data.num_words 60", "")


@pytest.fixture
def lists(names):
    Path("one.txt").write_text("\n".join(names[:200]))
    Path("two.txt").write_text("\n".join(names[200:280]))
    Path("odd.txt").write_text("\n".join(f"{name}ö" for name in names[:50]))


def test_a_resumed_run_keeps_its_best_score_and_takes_no_other_list(lists, fit):
    fit(f"{ONE} --trainer.max_steps 30")
    for name in ("last", "best"):  # a score that no network has
        content = read(checkpoint(HERE, name))
        (best,) = (state for state in content["callbacks"].values() if state.get("monitor") == "val/loss")
        best["best_model_score"] = torch.tensor(0.0)
        torch.save(content, checkpoint(HERE, name))
    fit("--ckpt_path last --trainer.max_steps 35 --trainer.logger false")  # another logger changes nothing
    assert (steps("last"), steps("best")) == (35, 30)
    before = ends()
    said = fit("--ckpt_path last --data.path two.txt --trainer.max_steps 50", mistake=True)
    assert re.search(
        r"two.txt: the list or its split has changed \(another list\); .*: --init_from \S+last.ckpt$", said
    )
    assert ends() == before


def test_the_last_checkpoint_has_steps_that_no_validation_followed(fit):
    own = "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.every_n_train_steps 1"
    fit(f"{SMALL} {own} --data.steps_per_epoch 5 --trainer.max_epochs 3 --trainer.check_val_every_n_epoch 2")
    assert steps() == 15


@pytest.mark.parametrize("name", ["best", "last", "weights.ckpt"])
def test_a_run_begins_with_the_weights_of_another(name, lists, fit):
    fit(f"{ONE} --data.smoothing 0 --model.lr 0.2 --trainer.max_steps 100")
    first, (best, last) = ends(), [read(checkpoint(HERE, each)) for each in ("best", "last")]
    assert best["global_step"] < last["global_step"]
    torch.save({part: last[part] for part in ("state_dict", "hyper_parameters")}, "weights.ckpt")
    assert "--init_from" in fit("--ckpt_path weights.ckpt", mistake=True)
    # A step of no length leaves the weights as they begin.
    fit(f"--init_from {name} --data.path two.txt --pictures false --model.lr 0 --trainer.max_steps 1")
    new, begun = read(checkpoint(HERE, version=1)), best if name == "best" else last
    assert new["global_step"] == 1
    assert all(torch.equal(weight, begun["state_dict"][each]) for each, weight in new["state_dict"].items())
    assert ends() == first


def test_weights_do_not_begin_a_run_with_strange_characters(lists, fit):
    fit(f"{ONE} --trainer.max_steps 5")
    said = fit("--init_from best --data.path odd.txt", mistake=True)
    assert "does not know 'ö'" in said
    *_, flag, both = shlex.split(said)  # what the line says to do
    fit(f"{ONE} --trainer.max_steps 5 {flag} {both}")
    fit("--init_from best --data.path odd.txt --pictures false --trainer.max_steps 5")


def test_a_config_is_the_same_run_again_from_any_folder(lists, fit, monkeypatch):
    fit(ONE)
    first, config = ends(), Path("lightning_logs/version_0/config.yaml").absolute()
    assert "EarlyStopping" in config.read_text()  # chosen for this list
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    fit(f"--config '{config}'")
    assert ends() == first
    assert Path("lightning_logs/version_0/config.yaml").read_text() == config.read_text()


# After a kill before the first checkpoint, which leaves a config alone.


@pytest.fixture
def begun(fit):
    """Two runs, the newer one without a checkpoint; gives its config."""
    fit(f"{SMALL} --trainer.max_steps 20 --data.steps_per_epoch 10")
    config = Path("lightning_logs/version_1/config.yaml")
    config.parent.mkdir()
    shutil.copy("lightning_logs/version_0/config.yaml", config)
    os.utime(config, (2**32, 2**32))
    return config


def test_a_run_without_a_checkpoint_starts_again_in_its_folder_and_has_no_best(begun, fit):
    assert "resuming" in fit("--ckpt_path best --trainer.max_steps 30")  # that of the other run, as a new one
    assert steps(version=2) == 30
    assert "lightning_logs/version_1 saved no checkpoint: starting again" in fit("--ckpt_path last").replace("\\", "/")
    assert ends(version=1) == ends()


def test_a_mistake_leaves_the_config_of_a_run_as_it_was(begun, fit):
    before = begun.read_text()
    fit("--ckpt_path last --model.lr -1", mistake=True)
    shutil.copytree("lightning_logs/version_0/checkpoints", begun.with_name("checkpoints"))
    fit("--ckpt_path last --trainer.max_steps 30 --model.hidden_size 9", mistake=True)  # found as the run is restored
    assert begun.read_text() == before
