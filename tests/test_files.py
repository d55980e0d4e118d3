"""Files are complete or absent, and lead nowhere else."""

import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from makemore_pl.checkpoint import load
from makemore_pl.durable import files
from makemore_pl.durable.checkpoints import WholeCheckpoints
from makemore_pl.durable.files import new_file, remove_litter, write_whole, writing

QUICK = ["--data.num_words", 50, "--model.hidden_size", 8, "--trainer.max_steps", 2, "--trainer.logger", "false"]
LAST = Path("checkpoints", "last.ckpt")

posix = pytest.mark.skipif(files.fcntl is None, reason="needs fcntl, which Windows has not")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, command):
    folder = tmp_path_factory.mktemp("trained")
    fit = command("fit", *QUICK, cwd=folder)
    assert fit.returncode == 0, fit.stderr
    return folder / LAST


WRITERS = {
    "predict": ("names.txt", ["predict", "--sample.output", "names.txt"]),
    "export": ("both.ckpt", ["export", "--output", "both.ckpt"]),
    "fit": ("checkpoints/last.ckpt", ["fit", *QUICK]),
}


@pytest.fixture
def victim(tmp_path, monkeypatch):
    """A file that links lead to, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


def source(writer, trained):
    return [] if writer == "fit" else ["--ckpt_path", trained]


@posix
@pytest.mark.parametrize("writer", WRITERS)
def test_a_planted_link_is_not_followed(writer, trained, call, victim):
    path, arguments = Path(WRITERS[writer][0]), WRITERS[writer][1]
    path.parent.mkdir(exist_ok=True)
    names = [path.name, "best.ckpt", "probe"] if writer == "fit" else [path.name]
    for name in names:
        for link in (name, f".{name}.{os.getpid()}", f".{name}.{os.getpid()}.partial", f".{name}.partial"):
            if not (writer == "fit" and link == name):  # a run does not begin where a checkpoint has its name
                path.with_name(link).symlink_to(victim)
    status, _, err = call(*arguments, *source(writer, trained))
    assert status == 0, err
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.stat().st_size > 50


@posix
def test_a_link_that_was_planted_during_the_run_is_not_followed(victim, tmp_path):
    (tmp_path / f".last.ckpt.{os.getpid()}.partial").symlink_to(victim)
    WholeCheckpoints().save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    assert victim.read_text() == "precious"
    assert load(tmp_path / "last.ckpt")["global_step"] == 1


@posix
@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_not_followed_even_if_its_name_was_guessed(writer, trained, call, victim, monkeypatch):
    path, arguments = Path(WRITERS[writer][0]), WRITERS[writer][1]
    path.parent.mkdir(exist_ok=True)
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    name = "probe" if writer == "fit" else path.name
    path.with_name(f".{name}.{'0' * 16}.partial").symlink_to(victim)
    status, _, err = call(*arguments, *source(writer, trained))
    assert status == 2
    assert re.search(r"error: .*(saved there|written) \(File exists\)\n$", err)
    assert victim.read_text() == "precious"
    assert not path.exists()


@posix
def test_a_killed_predict_leaves_a_file_that_the_next_one_removes(trained, call, tmp_path):
    output, others = tmp_path / "names.txt", [tmp_path / ".names.txt.partial", tmp_path / f".other.{'0' * 16}.partial"]
    for path in others:
        path.touch()
    arguments = ["predict", "--ckpt_path", trained, "--sample.output", output]
    line = [sys.executable, "-m", "makemore_pl", *map(str, arguments), "--sample.num_names", "1000000000"]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    try:
        while not (found := set(tmp_path.iterdir()) - set(others)):
            assert process.poll() is None
            time.sleep(0.05)
        status, _, err = call(*arguments)  # beside it: what it writes is in use
        assert status == 0, err
        assert set(tmp_path.iterdir()) - set(others) == found | {output}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = output.read_bytes()
    assert call(*arguments)[0] == 0
    assert output.read_bytes() == before
    assert set(tmp_path.iterdir()) == {output, *others}


@posix
def test_the_mode_is_that_of_an_ordinary_file_or_of_the_one_before(tmp_path):
    path = tmp_path / "x"
    for umask, before, after in [(0o022, None, 0o644), (0o077, None, 0o600), (0o077, 0o640, 0o640), (0, 0o400, 0o400)]:
        path.unlink(missing_ok=True)
        if before is not None:
            path.touch()
            path.chmod(before)
        previous = os.umask(umask)
        try:
            write_whole(path, b"content")
        finally:
            os.umask(previous)
        assert stat.S_IMODE(path.stat().st_mode) == after
        assert path.read_bytes() == b"content"


@posix
def test_a_pipe_is_written_as_it_is(trained, call, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    status, out, err = call("predict", "--ckpt_path", trained, "--sample.output", tmp_path / "pipe")
    reader.join(60)
    assert (status, out) == (0, ""), err
    assert read[0].count("\n") == 20
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="needs /dev/stdout as a link")
@pytest.mark.parametrize("to", ["file", "pipe"])
def test_dev_stdout_is_stdout(to, trained, tmp_path):
    line = [sys.executable, "-m", "makemore_pl", "predict", "--ckpt_path", trained, "--sample.output", "/dev/stdout"]
    before = set(Path("/dev").iterdir())
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(line, stdout=out if to == "file" else -1, stderr=-1, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out").read_text() if to == "file" else done.stdout
    assert text.count("\n") == 20
    assert Path("/dev/stdout").is_symlink()
    assert set(Path("/dev").iterdir()) == before


def test_what_fails_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError), writing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, b"")
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "gone" / "x", b"")
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_two_that_write_one_name_at_once_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "x"
    with writing(path) as first:
        first.write(b"first")
        with writing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_a_file_that_was_taken_for_litter_gets_another_name(tmp_path, monkeypatch):
    removed = []
    flock = files.fcntl.flock

    def after_removal(file, operation):
        if not removed:
            (path,) = tmp_path.iterdir()
            path.unlink()
            removed.append(path)
        flock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", after_removal)
    with new_file(tmp_path, "x") as (_, path):
        assert path not in removed
        assert path.exists()


@posix
def test_litter_of_other_names_and_kinds_stays(tmp_path):
    token = "0123456789abcdef"
    ours = tmp_path / f".a.txt.{token}.partial"
    kept = [f".axtxt.{token}.partial", ".a.txt.123.partial", f"a.txt.{token}.partial", f".a.txt.{token}.partial.b"]
    for path in (ours, *(tmp_path / name for name in kept)):
        path.touch()
    link = tmp_path / f".a.txt.{token[::-1]}.partial"
    link.symlink_to(ours)
    os.mkfifo(tmp_path / f".a.txt.{'0' * 16}.partial")  # to open it would hang
    with writing(tmp_path / "a.txt") as file:
        file.write(b"")
    assert not ours.exists()
    assert link.is_symlink()
    assert all((tmp_path / name).exists() for name in kept)
    remove_litter(tmp_path / "gone", ".+")
