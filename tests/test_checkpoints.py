"""Checkpoints are whole or absent, damaged ones are refused in one line, and nothing in them is executed."""

import errno
import itertools
import os
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from makemore_pl import MLP, NamesDataModule
from makemore_pl.checkpoints import WholeCheckpoints, new_folder, newest, read
from makemore_pl.cli import CLI

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--data.num_words", "60", "--model.hidden_size", "8", "--pictures", "false", "--trainer.accelerator", "cpu"]
LAST, BEST = (Path(f"lightning_logs/version_0/checkpoints/{name}.ckpt") for name in ("last", "best"))


class Deeper(MLP):
    """Another network with the same five tensors."""

    def hidden(self, X):
        return super().hidden(X) ** 2


@pytest.fixture
def run(folder, call):
    """A finished run of ten updates, in the current folder."""
    assert call("fit", *SMALL, "--trainer.max_steps", 10, "--trainer.logger", "false")[0] == 0


def files():
    return {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}


# Whole or absent.


@pytest.mark.parametrize(("number", "saved"), [(2, BEST), (3, LAST)], ids=["best", "last"])  # after config.yaml
def test_a_full_disk_keeps_what_was_saved_and_is_said_in_one_line(number, saved, run, call, monkeypatch):
    before, fsync, calls = files(), os.fsync, itertools.count(1)

    def full(file):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, _, err = call("fit", "--ckpt_path", "last", "--trainer.max_steps", 20)
    assert (status, "Traceback" in err) == (2, False)
    assert re.fullmatch(rf"error: .*{re.escape(str(saved))}: no space left on device", err.splitlines()[-1])
    assert files()[saved] == before[saved]
    assert saved.with_name(f".{saved.name}.partial").exists()  # a killed run leaves one too; later runs ignore it
    assert call("predict")[0] == call("fit", "--ckpt_path", "last", "--trainer.max_steps", 20)[0] == 0
    assert read(LAST)["global_step"] == 20
    assert sorted(path.name for path in LAST.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


# Damaged and foreign files; and nothing is executed.


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def flip(content):
    """Another number in W1: torch itself loads it."""
    at = content.index(read(LAST)["state_dict"]["W1"].numpy().tobytes())
    return content[: at + 2] + bytes([content[at + 2] ^ 1]) + content[at + 3 :]


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "text": lambda content: b"emma\nolivia\n",
    "another number": flip,
}
FOREIGN = {
    "a list": lambda state: [1, 2],
    "weights": lambda state: state["state_dict"],
    "another model": lambda state: state | {"state_dict": {"layer.weight": torch.ones(2)}},
    "other shapes": lambda state: state | {"state_dict": state["state_dict"] | {"W1": torch.ones(3, 3)}},
    "a tensor less": lambda state: state | {"state_dict": {"C": state["state_dict"]["C"]}},
    "code": lambda state: state | {"more": Bomb()},
    "an odd option": lambda state: state | {"hyper_parameters": state["hyper_parameters"] | {"block_size": "three"}},
}
DOORS = [
    ["fit", "--trainer.max_steps", "20", "--ckpt_path"],
    ["fit", *SMALL[4:], "--trainer.max_steps", "5", "--init_from"],
    ["validate", "--ckpt_path"],
    ["test", "--ckpt_path"],
    ["predict", "--ckpt_path"],
    ["export", "--output", "page.html", "--ckpt_path"],
]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[-1]}")
def test_a_damaged_or_foreign_file_is_one_line_and_changes_nothing(door, run, call, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content, state = LAST.read_bytes(), read(LAST)
    for what in [*DAMAGE, *FOREIGN]:
        if what in DAMAGE:
            Path("hurt.ckpt").write_bytes(DAMAGE[what](content))
        else:
            torch.save(FOREIGN[what](state), "hurt.ckpt")
        before = files()
        status, out, err = call(*door, "hurt.ckpt")
        *_, line = err.splitlines()
        assert (status, out, "Traceback" in err) == (2, "", False), f"{what}: {err}"
        assert line.startswith("error: "), what
        assert "hurt.ckpt" in line if what in DAMAGE else "checkpoint" in err or "--model" in line, f"{what}: {line}"
        assert files() == before, what


def test_last_falls_back_on_best_and_says_so(run, call):
    LAST.write_bytes(flip(LAST.read_bytes()))
    for command in (["validate"], ["fit", "--trainer.max_steps", 20]):
        status, _, err = call(*command, "--ckpt_path", "last")
        assert status == 0, err
        assert f"warning: {LAST}: damaged" in err
        assert f"taking {BEST} instead" in err
    BEST.write_bytes(b""), LAST.write_bytes(b"")
    status, out, err = call("predict")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {BEST}: damaged")


@pytest.mark.parametrize("asked", [{}, {"weights_only": False}])
def test_python_loads_no_damaged_file_and_executes_nothing(asked, run, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    Path("flipped.ckpt").write_bytes(flip(LAST.read_bytes()))
    bomb = Path("bomb.ckpt")
    torch.save(read(LAST) | {"more": Bomb()}, bomb)  # it would train and sample otherwise
    torch.load(bomb, weights_only=False)
    Path("executed").rmdir()  # so it works
    for path in ("flipped.ckpt", bomb, bomb.absolute().as_uri()):
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            MLP.load_from_checkpoint(path, **asked)
    quiet = {"logger": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, plugins=[WholeCheckpoints()], accelerator="cpu", **quiet)
    with pytest.raises(ValueError, match="damaged"):
        trainer.fit(MLP(hidden_size=8), NamesDataModule(num_words=60), ckpt_path=bomb, **asked)
    assert not Path("executed").exists()


# Folders, and other classes.


def test_two_runs_that_start_at_once_have_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_folder, [tmp_path] * 64))
    assert len({*folders}) == 64
    assert {path.name for path in folders} == {f"version_{number}" for number in range(64)}


def test_newest_is_what_was_saved_last(run, folder):
    assert (newest(), newest("last", folder)) == (BEST, folder / LAST)
    other = Path(shutil.copytree("lightning_logs/version_0", "lightning_logs/version_3"), "checkpoints")
    os.utime(other / "last.ckpt", (2**32, 2**32))
    (other / "best.ckpt").unlink()
    assert newest() == newest("last") == other / "last.ckpt"
    assert MLP.load_from_checkpoint(newest()).hparams["hidden_size"] == 8
    with pytest.raises(FileNotFoundError, match=r"no run found in elsewhere.*; train first"):
        newest(root="elsewhere")


def test_the_network_of_another_class_is_refused_in_one_line(folder, call):
    CLI(Deeper, args=["fit", *SMALL, "--trainer.max_steps", "5", "--trainer.logger", "false"])
    for command in ("predict", "validate", "test", "export", "fit"):
        status, out, err = call(command, *["--ckpt_path", "last"] * (command == "fit"))
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "is of MLP.forward and Deeper.hidden, not of MLP.forward and MLP.hidden: load it with" in err
