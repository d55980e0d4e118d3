"""A small share of `make torture`: faults are tried, and none may lose anything."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which Windows has not")


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("torture") / "counts.json"
    line = [sys.executable, ROOT / "tests" / "torture.py", "--share", "--output", path]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("part", "tried", "at_least", "lost"),
    [
        ("mutations of a checkpoint", "mutations", 300, {"loaded silently"}),
        ("kill -9 during saves", "saves killed", 20, {"broken", "litter after the next start"}),
        ("kill -9 during predict --sample.output", "commands killed", 1, {"incomplete", "litter after the next run"}),
        ("another split", "commands", 5, {"accepted", "files changed"}),
        ("SLURM's file", "commands", 7, {"code ran", "other result", "not named"}),
        ("planted links", "links planted", 20, {"files elsewhere written"}),
        ("kill -9 of the first of two processes", "runs ended", 2, {"processes left"}),
        ("resumed after EarlyStopping", "resumed", 6, {"trained on", "files changed"}),
        ("resumed with its own recipe", "runs killed", 5, {"other end", "other final state", "config changed"}),
        (
            "signals",
            "signals",
            10,
            {"other status", "second not at once", "other final state"},  # how soon is for `make torture` to say
        ),
        ("kill -9 at every step", "runs killed", 7, {"other final state", "batch repeated, skipped or changed"}),
        ("kill -9 at random times", "runs killed", 1, {"other final state"}),
    ],
)
def test_nothing_is_lost(part, tried, at_least, lost, counts):
    found = counts[part]
    assert found[tried] >= at_least
    assert {name: found[name] for name in lost} == dict.fromkeys(lost, 0)
