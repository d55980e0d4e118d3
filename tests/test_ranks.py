"""Several processes end with the weights of one, also after one of them was killed. Devices are CPU processes here."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
from conftest import ROOT
from torture import RANKS, checkpoint, run, torchrun

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which Windows has not")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, ROOT / "tests" / "ranks.py", folder], check=True, capture_output=True, timeout=900)
    return folder


def assert_same(ours, theirs):
    """Holds weights of 64 bits to 1e-12, and metrics, which are sums in 32 bits, to 1e-6."""
    for name, expected in theirs.items():
        limits = {"rtol": 1e-6, "atol": 0} if "/" in name else {"rtol": 0, "atol": 1e-12}
        torch.testing.assert_close(ours[name], expected, **limits, msg=lambda text, name=name: f"{name}: {text}")


def ends(folder, number):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(number)]


@pytest.mark.parametrize(
    ("case", "folder", "number"),
    [(case, case, number) for case in ranks.CASES for number in (2, 4)] + [("minibatches", "resumed", 20)],
)
def test_several_processes_end_with_the_weights_and_metrics_of_one(case, folder, number, runs):
    """Also after a run that went on with two, four, one and two processes again."""
    (one,) = ends(runs / case / "1", 1)
    assert {"C", "W1", "b1", "W2", "b2", "val/loss", "val/accuracy", "train/loss"} <= one.keys()
    for each in ends(runs / folder / str(number), number if folder == case else 2):
        assert_same(each, one)


@pytest.mark.parametrize("name", ranks.REQUESTS)
def test_several_processes_draw_the_names_of_one(name, runs):
    one, *others = ((runs / f"{name} {number}").read_text() for number in (1, 2, 4))
    assert one.count("\n") == ranks.REQUESTS[name]["num_names"]
    assert others == [one, one]


# The command line.


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The weights of one process."""
    folder = tmp_path_factory.mktemp("alone")
    status, said = run(folder, f"fit {RANKS}")
    assert status == 0, said
    return torch.load(checkpoint(folder), weights_only=True)["state_dict"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_processes_and_the_run_resumes_on_one(number, alone, tmp_path):
    line = [sys.executable, "-m", "makemore_pl", "fit", *shlex.split(RANKS)]
    line += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    # Lasts until it is stopped: the last value of a flag holds.
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(
            [*line, "--trainer.max_steps", "1000000"], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    while not checkpoint(tmp_path).exists():
        assert first.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    # A scheduler ends the first process, a terminal all of them.
    os.kill(first.pid, number) if number == signal.SIGTERM else os.killpg(first.pid, number)
    assert first.wait(60) == 128 + number
    said = (tmp_path / "log").read_text()
    assert said.count(f"stopped by {number.name}; to resume: ") == 1
    assert "Traceback" not in said
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(first.pid, 0)
            time.sleep(0.05)
    status, said = run(tmp_path, f"fit --ckpt_path last {RANKS} --trainer.devices 1 --trainer.strategy auto")
    assert (status, "resuming" in said) == (0, True), said
    assert_same(torch.load(checkpoint(tmp_path), weights_only=True)["state_dict"], alone)


def test_a_job_of_torchrun_survives_a_killed_process(alone, tmp_path):
    status, killed, said = torchrun(tmp_path / "job", RANKS, random.Random(1), 1)
    assert (status, killed) == (0, 1), said
    assert_same(torch.load(checkpoint(tmp_path / "job"), weights_only=True)["state_dict"], alone)
    assert [path.name for path in Path(tmp_path, "job", "lightning_logs").iterdir()] == ["version_0"]
