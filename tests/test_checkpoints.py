"""Checkpoints are whole or absent, damaged ones are refused in one line, and nothing in them is executed."""

import errno
import itertools
import os
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run of ten updates."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        CLI(args=["fit", *SMALL, "--trainer.max_steps", "10", "--trainer.logger", "false"])
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of that folder, which becomes the current one."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


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
    assert call("fit", "--ckpt_path", "last", "--trainer.max_steps", 20)[0] == 0
    assert read(LAST)["global_step"] == 20


def test_a_partial_file_of_a_killed_run_is_in_nobodys_way(run, call):
    LAST.with_name(".last.ckpt.partial").write_bytes(b"half of a checkpoint")
    assert call("predict")[0] == 0
    assert call("fit", "--ckpt_path", "last", "--trainer.max_steps", 20)[0] == 0
    assert sorted(path.name for path in LAST.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


# Damaged and foreign files.


def flip(content):
    """Another number in W1: torch itself loads it."""
    at = content.index(read(LAST)["state_dict"]["W1"].numpy().tobytes())
    return content[: at + 2] + bytes([content[at + 2] ^ 1]) + content[at + 3 :]


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"emma\nolivia\n",
    "another number": flip,
    "a byte less": lambda content: content[:300] + content[301:],
}
OTHER = {"state_dict": {"layer.weight": torch.ones(2)}, "hyper_parameters": {"lr": 1}}
FOREIGN = {
    "a list": lambda state: [1, 2],
    "weights": lambda state: state["state_dict"],
    "another model": lambda state: state | OTHER,
    "other shapes": lambda state: state | {"state_dict": state["state_dict"] | {"W1": torch.ones(3, 3)}},
    "a tensor less": lambda state: state | {"state_dict": {"C": state["state_dict"]["C"]}},
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
def test_a_damaged_or_foreign_file_is_one_line_and_changes_nothing(door, run, call):
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


def test_weights_alone_begin_a_run_and_resume_none(run, call):
    state = read(LAST)
    torch.save({name: state[name] for name in ("state_dict", "hyper_parameters")}, "weights.ckpt")
    status, _, err = call("fit", "--ckpt_path", "weights.ckpt", "--trainer.max_steps", 20)
    assert (status, err.splitlines()[-1].count("--init_from")) == (2, 1)
    assert call("fit", *SMALL[:2], *SMALL[4:], "--init_from", "weights.ckpt", "--trainer.max_steps", 2)[0] == 0


@pytest.mark.parametrize("damage", ["truncated", "another number"])
def test_last_falls_back_on_best_and_says_so(damage, run, call):
    LAST.write_bytes(DAMAGE[damage](LAST.read_bytes()))
    for command in (["validate"], ["fit", "--trainer.max_steps", 20]):
        status, _, err = call(*command, "--ckpt_path", "last")
        assert status == 0, err
        assert f"warning: {LAST}: damaged" in err
        assert f"taking {BEST} instead" in err
    BEST.write_bytes(b""), LAST.write_bytes(b"")
    status, out, err = call("predict")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {BEST}: damaged")


def test_a_damaged_file_is_refused_from_python_too(run):
    LAST.write_bytes(flip(LAST.read_bytes()))
    with pytest.raises(ValueError, match=r"last.ckpt: damaged"):
        MLP.load_from_checkpoint(LAST)


# Nothing is executed.


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture
def bomb(run, monkeypatch):
    """A checkpoint that makes a folder when it is unpickled, and would train and sample otherwise."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(read(LAST) | {"more": Bomb()}, "bomb.ckpt")
    torch.load("bomb.ckpt", weights_only=False)
    Path("executed").rmdir()  # so it works
    return Path("bomb.ckpt")


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door[0]} {door[-1]}")
def test_no_command_executes_what_a_checkpoint_holds(door, bomb, call):
    for name in (bomb, bomb.absolute().as_uri()):
        status, _, err = call(*door, name)
        assert (status, err.splitlines()[-1].startswith("error: ")) == (2, True)
        assert not Path("executed").exists()
    shutil.copy(bomb, BEST), shutil.copy(bomb, LAST)
    assert call(*door, "last")[0] == 2
    assert not Path("executed").exists()


@pytest.mark.parametrize("asked", [{}, {"weights_only": False}])
def test_nothing_is_executed_from_python_nor_from_an_address(asked, bomb, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(bomb.parent.absolute() / "home"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=Path.cwd()))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        for path in (bomb, f"http://127.0.0.1:{server.server_port}/bomb.ckpt", bomb.absolute().as_uri()):
            with pytest.raises((ValueError, OSError, pickle.UnpicklingError)):
                MLP.load_from_checkpoint(path, **asked)
            assert not Path("executed").exists()
        trainer = Trainer(logger=False, plugins=[WholeCheckpoints()], accelerator="cpu", enable_progress_bar=False)
        with pytest.raises(ValueError, match="damaged"):
            trainer.fit(MLP(hidden_size=8), NamesDataModule(num_words=60), ckpt_path=bomb, **asked)
        assert not Path("executed").exists()
    finally:
        server.shutdown()


# Folders, and other classes.


def test_two_runs_that_start_at_once_have_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_folder, [tmp_path] * 64))
    assert len({*folders}) == 64
    assert {path.name for path in folders} == {f"version_{number}" for number in range(64)}


def test_newest_is_what_was_saved_last(run, monkeypatch):
    assert (newest(), newest("last", run)) == (BEST, run / LAST)
    other = Path(shutil.copytree("lightning_logs/version_0", "lightning_logs/version_3"), "checkpoints")
    os.utime(other / "last.ckpt", (2**32, 2**32))
    (other / "best.ckpt").unlink()
    assert newest() == newest("last") == other / "last.ckpt"
    assert MLP.load_from_checkpoint(newest()).hparams["hidden_size"] == 8
    with pytest.raises(FileNotFoundError, match=r"no run found in elsewhere.*; train first"):
        newest(root="elsewhere")


def test_the_network_of_another_class_is_refused_in_one_line(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    CLI(Deeper, args=["fit", *SMALL, "--trainer.max_steps", "5", "--trainer.logger", "false"])
    for command in ("predict", "validate", "test", "export", "fit"):
        status, out, err = call(command, *["--ckpt_path", "last"] * (command == "fit"))
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "the network of Deeper" in err
        assert "CLI(Deeper)" in err
    CLI(Deeper, args=["fit", "--ckpt_path", "last", "--trainer.max_steps", "8"])
    CLI(Deeper, args=["validate"])
    assert read(LAST)["global_step"] == 8
