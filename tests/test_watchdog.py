"""Runs on two processes with faults, made by faults.py. Each run must end; on a quiet machine within ten seconds."""

import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

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
        # The others may notice it in an exchange, or be ended by their launcher.
        "SIGKILL": rf"error: (lost the connection to another process|SIGTERM|SIGINT|the program .* has ended){end}",
        "SIGTERM": rf"error: (SIGTERM|SIGINT{gone}){end}",
        "SIGINT": rf"error: (SIGINT|SIGTERM{gone}){end}",
        "error": rf"error: (lost the connection to another process|SIGTERM){end}",
    }[fault]
    assert all(re.fullmatch(expected, line) for line in said), said
    # In the other cases the launcher may end the last process before it prints its line.
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


def start(launcher, folder):
    """Starts a fit on two processes; returns the process of the launcher."""
    fit = ["-m", "makemore_pl", "fit", "--data.num_words", "100", "--trainer.max_steps", "1000000"]
    strategy = "ddp" if launcher == "torchrun" else launcher
    fit += ["--trainer.accelerator", "cpu", "--trainer.strategy", strategy, "--trainer.devices", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [sys.executable, *(torchrun if launcher == "torchrun" else []), *fit]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(line, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listed.split() if faults.alive(int(child))]


def require_end(pids):
    """Waits for processes to end. The limit is generous: the promise is ten seconds on a quiet machine."""
    deadline = time.monotonic() + faults.LIMIT
    while any(map(faults.alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(faults.alive, pids))


def kill_session(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(("launcher", "fault"), [("ddp", "SIGTERM"), ("torchrun", "SIGKILL")])
def test_the_launcher_takes_all_with_it(launcher, fault, tmp_path, command):
    process = start(launcher, tmp_path)
    try:
        last = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
        while not last.exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        family = children(process.pid)
        assert len(family) == (2 if launcher == "torchrun" else 1)
        process.send_signal(getattr(signal, fault))
        assert process.wait(faults.LIMIT) != 0
        require_end(family)
    finally:
        kill_session(process)
    step = torch.load(last, weights_only=True)["global_step"]
    more = ["--trainer.max_steps", step + 5, "--model.schedule", "constant"]
    resumed = command("fit", "--ckpt_path", "last", "--data.num_words", 100, *more, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming lightning_logs/version_0/checkpoints/last.ckpt, step {step:,}" in resumed.stderr


@pytest.mark.parametrize(
    ("launcher", "fault", "seconds"),
    [
        ("ddp", "SIGKILL", 0),
        ("ddp", "SIGKILL", 2),
        ("ddp", "SIGINT", 1),
        ("torchrun", "SIGKILL", 1),
    ],
)
def test_a_launcher_that_ends_during_the_start_takes_all_with_it(launcher, fault, seconds, tmp_path):
    process = start(launcher, tmp_path)
    try:
        while len(family := children(process.pid)) < (2 if launcher == "torchrun" else 1):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        time.sleep(seconds)
        if fault == "SIGINT":  # as a terminal sends it
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.kill()
        process.wait(faults.LIMIT)
        require_end(family)
    finally:
        kill_session(process)


def addresses(pids):
    """The local addresses of all network sockets of some processes, from Linux's tables."""
    inodes = set()
    for link in [link for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()]:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                words = bytes.fromhex(fields[1].partition(":")[0])
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.append(ipaddress.ip_address(packed))
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc/net")
@pytest.mark.parametrize("launcher", ["ddp", "ddp_spawn"])
def test_processes_of_one_machine_listen_on_its_loopback_interface(launcher, tmp_path):
    process = start(launcher, tmp_path)
    try:
        while not (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        found = addresses([process.pid, *children(process.pid)])
    finally:
        kill_session(process)
    assert len(found) >= 4  # the store, the watchdog, the gradients of both
    assert {str(each) for each in found if not (getattr(each, "ipv4_mapped", None) or each).is_loopback} == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_waits_for_another_machine(number, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {"LOCAL_RANK": 0, "NODE_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in there.items()}
    line = [sys.executable, "-m", "makemore_pl", "fit", "--data.num_words", "100", "--trainer.strategy", "ddp"]
    line += ["--trainer.accelerator", "cpu", "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    process = subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(faults.LIMIT) == 128 + number
    finally:
        process.kill()
