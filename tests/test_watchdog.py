"""Runs on two processes that are hurt, by faults.py. Promised are ten seconds; a busy machine gets twenty."""

import json
import signal
import subprocess
import sys
import time

import faults
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    subprocess.run([sys.executable, ROOT / "tests" / "faults.py", folder], check=True, capture_output=True, timeout=300)
    return folder


@pytest.mark.parametrize(("fault", "whom"), faults.CASES)
def test_one_fault_ends_the_whole_run(fault, whom, results):
    result = json.loads((results / f"{fault} {whom}" / "result.json").read_text())
    assert result["status"] not in (None, 0)
    assert result["left"] == []
    assert result["step"] >= 10  # of a checkpoint that can be read
    said = [line for line in result["said"].split("\n") if line.startswith("error: ")]
    if whom == "all" and fault == "SIGKILL":
        assert not said
    if fault == "SIGSTOP":
        assert said == [
            f"error: process {whom} has been silent for 6 seconds: "
            "ended all processes of this run; fit --ckpt_path last goes on with it"
        ]
    if fault == "sleep":
        assert "has stood still for" in said[0]


@pytest.mark.parametrize(("launcher", "fault"), [("ddp", "SIGTERM"), ("torchrun", "SIGKILL")])
def test_the_launcher_takes_all_with_it(launcher, fault, tmp_path, command):
    fit = ["-m", "makemore_pl", "fit", "--data.num_words", "100", "--trainer.max_steps", "1000000"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [sys.executable, *(torchrun if launcher == "torchrun" else []), *fit]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(line, cwd=tmp_path, stdout=log, stderr=log)
    last = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    family = children(process.pid)
    assert len(family) == (2 if launcher == "torchrun" else 1)
    process.send_signal(getattr(signal, fault))
    assert process.wait(faults.LIMIT) != 0
    for _ in range(10 * faults.LIMIT):
        if not any(map(faults.alive, family)):
            break
        time.sleep(0.1)
    assert not any(map(faults.alive, family))
    resumed = command("fit", "--ckpt_path", "last", "--data.num_words", 100, "--trainer.fast_dev_run", 1, cwd=tmp_path)
    assert "Traceback" not in resumed.stderr
    assert "going on from" in resumed.stderr


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listed.split() if faults.alive(int(child))]
