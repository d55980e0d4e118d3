"""A resumed run takes its own recipe: its limits and intervals, and what its checkpoint was trained on."""

import re
from pathlib import Path

import pytest
import torch

RUN = Path("lightning_logs", "version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
FEW = ["--data.num_words", 60, "--model.hidden_size", 8]
SAVING = """
trainer:
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {dirpath: kept, filename: "{step}", save_top_k: -1, save_on_train_epoch_end: false}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(path=LAST):
    return torch.load(path, weights_only=True)


def test_a_finished_run_is_finished_until_its_limit_is_raised(folder, call):
    assert call("fit", *FEW, "--trainer.max_steps", 30, "--data.steps_per_epoch", 10)[0] == 0
    config = (RUN / "config.yaml").read_text()
    finished = "error: {}: this run is finished, at step {}; to resume it, raise --trainer.max_steps\n"
    status, out, err = call("fit", "--ckpt_path", "last")
    assert (status, out, err) == (2, "", finished.format(LAST, 30))

    status, _, err = call("fit", "--ckpt_path", "last", "--trainer.max_steps", 60)
    assert status == 0, err
    assert err.startswith(f"resuming {LAST}, step 30\nchanged: max_steps 60 instead of 30\n60 words")
    # By hand: 0.04 x (1 - 30/60) / 0.9, and nothing after all of 30 steps.
    assert (
        "\nthe linear schedule now ends at step 60 instead of 30: the next learning rate is 0.022 instead of 0\n" in err
    )
    assert load()["global_step"] == 60
    assert (RUN / "config.yaml").read_text() == config
    assert call("fit", "--ckpt_path", "last") == (2, "", finished.format(LAST, 60))

    # The recipe of the first run is one that can be repeated.
    status, _, err = call("fit", "--config", RUN / "config.yaml")
    assert status == 0, err
    assert load("lightning_logs/version_1/checkpoints/last.ckpt")["global_step"] == 30


FLAGS = {
    "steps": ["--trainer.max_steps", 31, "--trainer.val_check_interval", 2],
    "epochs": ["--trainer.max_epochs", 4, "--trainer.limit_train_batches", 7, "--trainer.precision", "64-true"],
    "accumulated": ["--trainer.max_steps", 20, "--trainer.accumulate_grad_batches", 2, "--data.batch_size", 16],
    "clipped": ["--trainer.max_steps", 30, "--trainer.gradient_clip_val", 0.01, "--trainer.check_val_every_n_epoch", 2],
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_run_resumes_without_its_flags_bit_for_bit(flags, folder, call):
    """From a checkpoint of the middle, named as a file, with no other flag; the new run has the same end."""
    (folder / "saving.yaml").write_text(SAVING)
    status, _, err = call("fit", *FEW, "--config", "saving.yaml", "--data.steps_per_epoch", 10, *flags)
    assert status == 0, err
    whole = load()
    middle = sorted(Path("kept").iterdir(), key=lambda path: int(re.findall(r"\d+", path.name)[0]))[0]
    assert load(middle)["global_step"] < whole["global_step"]
    status, _, err = call("fit", "--ckpt_path", middle)
    assert status == 0, err
    assert "changed:" not in err
    assert "schedule now ends" not in err
    resumed = load("lightning_logs/version_1/checkpoints/last.ckpt")
    assert resumed["global_step"] == whole["global_step"]
    assert all(torch.equal(tensor, whole["state_dict"][name]) for name, tensor in resumed["state_dict"].items())


def test_flags_that_change_are_said_and_kept(folder, call):
    assert call("fit", *FEW, "--trainer.max_steps", 4, "--model.schedule", "constant")[0] == 0
    status, _, err = call(
        "fit", "--ckpt_path", "last", "--trainer.max_epochs", 1, "--model.lr", 0.01, "--data.smoothing", 0.5
    )
    assert status == 0, err
    changed = (
        "max_steps -1 instead of 4, max_epochs 1 instead of none, lr 0.01 instead of 0.04, smoothing 0.5 instead of 0.0"
    )
    assert f"\nchanged: {changed}\n" in err
    assert "schedule" not in err
    assert load()["global_step"] == 25
    assert load()["callbacks"]["Recipe"]["trainer"]["max_epochs"] == 1
    status, _, err = call("fit", "--ckpt_path", "last")
    assert (status, "this run is finished" in err, "--trainer.max_epochs" in err) == (2, True, True)


@pytest.mark.parametrize(
    "recipe",
    [{"max_steps": "x"}, {"max_time": {"class_path": "os.system"}}, {"max_steps": torch.zeros(3)}, {"precision": [1]}],
)
def test_a_recipe_that_is_none_is_one_line(recipe, folder, call):
    assert call("fit", *FEW, "--trainer.max_steps", 4)[0] == 0
    checkpoint = load()
    checkpoint["callbacks"]["Recipe"]["trainer"] |= recipe
    del checkpoint["sealed"]
    torch.save(checkpoint, "other.ckpt")
    status, out, err = call("fit", "--ckpt_path", "other.ckpt")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(
        ("error: other.ckpt: its hyperparameters do not fit (", "error: other.ckpt: not a checkpoint")
    )


@pytest.mark.parametrize("callbacks", [{}, {"Recipe": {"trainer": [1]}}, {"Recipe": {"trainer": {"logger": "x"}}}])
def test_a_checkpoint_without_a_recipe_resumes_with_the_flags(callbacks, folder, call):
    assert call("fit", *FEW, "--trainer.max_steps", 4)[0] == 0
    checkpoint = load()
    checkpoint["callbacks"] = {**checkpoint["callbacks"], "Recipe": {}} | callbacks
    del checkpoint["sealed"]
    torch.save(checkpoint, "other.ckpt")
    status, _, err = call("fit", "--ckpt_path", "other.ckpt", "--trainer.max_steps", 6)
    assert status == 0, err
