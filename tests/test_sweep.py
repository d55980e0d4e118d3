import logging
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT


def test_a_sweep_searches_goes_on_and_prints_a_command(folder, names, call, monkeypatch, capfd, caplog):
    caplog.set_level(logging.ERROR, "lightning.pytorch")  # as the script does; pytest restores it
    (folder / "few names.txt").write_text("\n".join(names[:300]), encoding="utf-8")

    def sweep(*flags):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "--path", "few names.txt", "--max_steps", "4", *flags])
        capfd.readouterr()
        runpy.run_path(str(ROOT / "examples" / "sweep.py"), run_name="__main__")
        return capfd.readouterr()

    first, more = sweep("--trials", "2"), sweep("--trials", "3")
    assert (first.err.count(" finished with value"), more.err.count(" finished with value")) == (2, 1)
    assert sweep("--trials", "3").out == more.out  # nothing is left to do
    status, config, err = call(*shlex.split(more.out)[3:], "--print_config")
    assert status == 0, err
    config = yaml.safe_load(config)
    assert (config["trainer"]["max_steps"], config["data"]["path"]) == (4, "few names.txt")
    assert 2 <= config["model"]["block_size"] <= 8
    assert 0.005 <= config["model"]["lr"] <= 0.1

    Path("few names.txt").unlink()
    with pytest.raises(SystemExit, match="2"):
        sweep()
    assert capfd.readouterr().err.endswith("few names.txt: cannot read this list (No such file or directory)\n")
