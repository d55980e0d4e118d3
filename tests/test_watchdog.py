"""Runs on two processes with faults, made by faults.py. Each run must end; on a quiet machine within ten seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import faults
import pytest
import torch
from conftest import ROOT

from makemore_pl.durable.watchdog import Watchdog


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    subprocess.run([sys.executable, ROOT / "tests" / "faults.py", folder], check=True, capture_output=True, timeout=900)
    return folder


@pytest.mark.parametrize(("fault", "whom"), faults.CASES)
def test_one_fault_ends_the_whole_run(fault, whom, results):
    result = json.loads((results / f"{fault} {whom}" / "result.json").read_text())
    assert result["status"] not in (None, 0)
    assert result["left"] == []
    assert result["step"] >= 10  # of a checkpoint that can be read
    said = [line for line in result["said"].split("\n") if line.startswith("error: ")]
    # Before the first checkpoint there is nothing to resume from.
    end = ": ended all processes of this run"
    end += "(; the same command with --ckpt_path last resumes from the last checkpoint)?"
    gone = "|the program .* has ended" if whom == "launcher" else ""  # it dies of the signal, which may be seen first
    expected = {
        "SIGSTOP": rf"error: process {whom} has been silent for 6 seconds{end}",
        "sleep": rf"error: process \d has stood still for \d+ seconds{end}",
        # The survivors may learn of it from the exchange or from whoever launched them.
        "SIGKILL": rf"error: (lost the connection to another process|SIGTERM|SIGINT|the program .* has ended){end}",
        "SIGTERM": rf"error: (SIGTERM|SIGINT{gone}){end}",
        "SIGINT": rf"error: (SIGINT|SIGTERM{gone}){end}",
        "error": rf"error: (lost the connection to another process|SIGTERM){end}",
    }[fault]
    assert all(re.fullmatch(expected, line) for line in said), said
    # Of the others, whoever launched them may have ended the last one before it could speak.
    assert said or fault not in ("SIGSTOP", "sleep")


@pytest.mark.parametrize("case", faults.HEALTHY)
def test_a_healthy_run_is_left_alone(case, results):
    result = json.loads((results / case / "result.json").read_text())
    assert result["done"] == 2, result["said"]
    assert "error" not in result["said"]


@pytest.mark.parametrize("patience", [0, 2])
def test_too_little_patience_is_refused(patience):
    with pytest.raises(ValueError, match="expected 3 or more seconds"):
        Watchdog(patience)


@pytest.mark.parametrize(("launcher", "fault"), [("ddp", "SIGTERM"), ("torchrun", "SIGKILL")])
def test_the_launcher_takes_all_with_it(launcher, fault, tmp_path, command):
    fit = ["-m", "makemore_pl", "fit", "--data.num_words", "100", "--trainer.max_steps", "1000000"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [sys.executable, *(torchrun if launcher == "torchrun" else []), *fit]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(line, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
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
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    step = torch.load(last, weights_only=True)["global_step"]
    more = ["--trainer.max_steps", step + 5, "--model.schedule", "constant"]
    resumed = command("fit", "--ckpt_path", "last", "--data.num_words", 100, *more, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming lightning_logs/version_0/checkpoints/last.ckpt, step {step:,}" in resumed.stderr


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listed.split() if faults.alive(int(child))]
