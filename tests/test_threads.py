import os
import subprocess
import sys

import pytest
import torch

from makemore_pl import MLP
from makemore_pl.commands import threads

ALL = 3  # of a machine with some cores


@pytest.fixture
def cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "MOST", ALL)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


# Rows of a step times parameters, by hand: 5,439 x 11,897 = 65 million; 32 x 11,897; 5,439 x 62,891 = 342 million;
# 2,048 x 258,939 = 530 million.
@pytest.mark.parametrize(("recipe", "expected"), [([], 1), (["lecture"], 1), (["wide"], ALL), (["deep"], ALL)])
def test_all_threads_share_what_is_large(recipe, expected, cores, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen, step = [], MLP.training_step

    def training_step(*arguments):
        seen.append(torch.get_num_threads())
        return step(*arguments)

    monkeypatch.setattr(MLP, "training_step", training_step)
    status, _, err = call("fit", *(f"--config={name}" for name in recipe), "--trainer.max_steps", 1)
    assert status == 0, err
    assert seen == [expected]


@pytest.mark.parametrize(("names", "expected"), [(20, 1), (100_000, ALL)])  # 65,536 side by side x 11,897 = 780 million
def test_sampling_many_takes_all(names, expected, cores, default_fit, call, monkeypatch):
    monkeypatch.chdir(default_fit[0])
    seen, step = [], MLP.predict_step

    def predict_step(*arguments):
        seen.append(torch.get_num_threads())
        return step(*arguments)

    monkeypatch.setattr(MLP, "predict_step", predict_step)
    assert call("predict", "--sample.num_names", names)[0] == 0
    assert set(seen) == {expected}


def test_who_says_how_many_is_heard(cores, monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads.choose_threads(0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_told_otherwise(given, found):
    # The command line as it is, but for the room behind it, which is opened once the environment is ready.
    code = (
        "import sys, os, types; cli = types.ModuleType('makemore_pl.commands.cli');"
        "cli.main = lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules);"
        "sys.modules['makemore_pl.commands.cli'] = cli; import makemore_pl.commands; makemore_pl.commands.cli = cli;"
        "from makemore_pl.__main__ import main; main()"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.split() == [found, "False"]
