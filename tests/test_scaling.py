"""Follows docs/scaling.md to the letter, as far as one machine without a GPU can."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

DOCUMENT = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in DOCUMENT.split("\n## ")[1:]}
README_LOSS = 2.0886  # of the default recipe; processors round differently
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"


def block(section, language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)
    return found


@pytest.fixture
def shell(tmp_path):
    """Starts a script in an empty folder, with this environment's programs first in the path."""
    (tmp_path / "torchrun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    (tmp_path / "torchrun").chmod(stat.S_IRWXU)  # whose own script need not be where the interpreter is

    def start(script, **variables):
        path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, **variables}
        return subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment, text=True, stdout=-1, stderr=-1)

    return start


def finished(*processes):
    outputs = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def loss(err):
    (found,) = re.findall(r"\(val/loss (\d\.\d{4})\)", err)
    return float(found)


def test_the_document_is_finished():
    assert not re.search(r"^[A-Z]{4,}$|TODO|TABLE", DOCUMENT, re.MULTILINE)


def test_one_machine(shell):
    ((out, err),) = finished(shell(block("One machine", "sh")))
    assert out.count("\n") == 20
    assert loss(err) == pytest.approx(README_LOSS, abs=0.01)


def test_the_watchdog_can_be_given_patience(call, tmp_path):
    (tmp_path / "patient.yaml").write_text(block("One machine", "yaml"))
    status, out, err = call("fit", "--config", tmp_path / "patient.yaml", "--print_config")
    assert status == 0, err
    assert yaml.safe_load(out)["trainer"]["callbacks"][0]["init_args"] == {"patience": 60}


def test_two_machines(shell):
    script = block("Two machines: torchrun", "sh")
    (out, err), (other, _) = finished(*(shell(script, HEAD="127.0.0.1", NODE_RANK=node) for node in "01"))
    assert out.count("\n") == 20
    assert other == ""
    assert loss(err) == pytest.approx(README_LOSS, abs=0.01)


def test_kubernetes_does_what_two_machines_do():
    service, job = yaml.safe_load_all(block("Kubernetes", "yaml"))
    ((line,),) = [container["args"] for container in job["spec"]["template"]["spec"]["containers"]]
    line = line.replace("$JOB_COMPLETION_INDEX", "$NODE_RANK").replace("${HEAD:-makemore-0.makemore}", "$HEAD")
    assert line.split() == block("Two machines: torchrun", "sh").replace("\\\n", "").split()
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]


SRUN = """#!/bin/bash
# Stands for SLURM's: one task a node, signals handed on.
trap 'kill $tasks' TERM
for node in 0 1; do
  SLURM_PROCID=$node SLURM_NODEID=$node SLURM_LOCALID=0 "$@" & tasks+=" $!"
done
for task in $tasks; do wait $task || status=$?; done
for task in $tasks; do wait $task; done
exit ${status:-0}
"""


def test_slurm(shell, tmp_path):
    for name, script in {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" >> scontrol.log\n'}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(stat.S_IRWXU)
    slurm = {"JOB_ID": "17", "JOB_NAME": "makemore", "NTASKS": "2", "NNODES": "2", "NTASKS_PER_NODE": "1"}
    variables = {f"SLURM_{name}": value for name, value in slurm.items()}
    variables |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"}
    script = block("SLURM", "bash")
    batch = shell(script, **variables)
    while not (tmp_path / LAST).exists():
        assert batch.poll() is None, batch.communicate()
        time.sleep(0.1)
    batch.send_signal(signal.SIGTERM)  # as SLURM does a minute before the time is up
    _, err = batch.communicate(timeout=900)
    assert "error: SIGTERM: ended all processes of this run" in err
    assert (tmp_path / "scontrol.log").read_text() == "requeue 17\n"

    ((out, err),) = finished(shell(script, **variables))
    assert f"resuming {LAST}, step " in err
    assert out.count("\n") == 20
    assert not (tmp_path / "lightning_logs" / "version_1").exists()


def test_sweeps(shell, tmp_path, names):
    (tmp_path / "my_words.txt").write_text("\n".join(names[:100]), encoding="utf-8")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    ((out, err),) = finished(shell(block("Sweeps", "sh")))
    assert "python -m makemore_pl fit --model.block_size" in out
    # The other process may be at its last when the twelfth is done.
    assert len(re.findall(r"Trial \d+ (?:finished|pruned)", err)) in (12, 13)


def test_lists_larger_than_memory(shell):
    ((out, err),) = finished(shell(block("Lists larger than memory", "sh")))
    assert out.count("\n") == 20
    assert "words in pieces\n26 characters, " in err
