"""Several processes against one. The Trainer's devices are CPU processes here; test_gpu.py has the rest."""

import re
import subprocess
import sys
from pathlib import Path

import notebook
import pytest
import ranks
import torch
from conftest import ROOT

from makemore_pl import MLP
from makemore_pl.batches import Batches

SEVERAL = [2, 4]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, ROOT / "tests" / "ranks.py", folder], check=True, capture_output=True, timeout=900)
    return folder


def seen(folder, ranks):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def furthest(ours, theirs):
    """The largest difference, where the largest number is 1 or more in units of that."""
    ours, theirs = (
        torch.cat([torch.as_tensor(x, dtype=torch.float64).flatten() for x in each]) for each in (ours, theirs)
    )
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))


@pytest.mark.parametrize("ranks", SEVERAL)
@pytest.mark.parametrize("case", ranks.CASES)
@pytest.mark.parametrize(("precision", "limit"), [("64-true", 1e-12), ("32-true", 1e-6)])
def test_several_processes_do_what_one_does(precision, limit, case, ranks, runs):
    (one,) = seen(runs / precision / case / "1", 1)
    several = seen(runs / precision / case / str(ranks), ranks)
    assert len(one["losses"]) == (6 if "blocks" in case else 20)
    for each in several:
        assert furthest(one["losses"], each["losses"]) <= limit
        if case == "blocks sgd":  # one process computes them by hand
            assert not one["gradients"]
            assert len(each["gradients"]) == 20
            continue
        for ours, theirs in zip(one["gradients"], each["gradients"], strict=True):
            assert furthest(ours.values(), theirs.values()) <= limit
        assert furthest(one["weights"].values(), each["weights"].values()) <= limit
        assert one["metrics"].keys() == each["metrics"].keys()
        assert furthest(one["metrics"].values(), each["metrics"].values()) <= limit
        assert all(torch.equal(several[0]["weights"][name], weight) for name, weight in each["weights"].items())


@pytest.mark.parametrize("ranks", SEVERAL)
@pytest.mark.parametrize("case", ranks.CASES)
def test_shares_neither_overlap_nor_leave_out(case, ranks, runs):
    (one,) = seen(runs / "64-true" / case / "1", 1)
    several = seen(runs / "64-true" / case / str(ranks), ranks)
    for whole, *shares in zip(one["batches"], *(each["batches"] for each in several), strict=True):
        assert torch.equal(torch.cat(shares), whole)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    sizes = {len(share) for each in several for share in each["batches"]}
    assert (0 in sizes) == (ranks == 4 and case.startswith(("minibatch", "blocks")))


@pytest.mark.parametrize("ranks", [1, *SEVERAL])
def test_losses_are_those_of_the_notebook(ranks, runs, names):
    """Before the first update, and of the final weights on the validation words: over all, not over a share."""
    words, _, _ = notebook.split(names[:180])
    stoi = notebook.stoi(names)
    X, Y = notebook.build_dataset(words, stoi)
    run = seen(runs / "64-true" / "counted" / str(ranks), ranks)[0]
    begin = MLP(hidden_size=17, embedding_dim=5).double().state_dict()
    assert run["losses"][0] == pytest.approx(notebook.negative_log_likelihood(begin, X, Y).item(), abs=1e-12)
    val = notebook.build_dataset(notebook.split(names[:180])[1], stoi)
    loss = notebook.negative_log_likelihood(run["weights"], *val).item()
    assert run["metrics"]["val/loss"] == pytest.approx(loss, abs=1e-12)


def test_a_run_goes_on_with_another_number_of_processes(runs):
    """On two, then one, then two again: the batches and the weights of a run that never stopped."""
    (whole,) = seen(runs / "never stopped", 1)
    two, (one,), two_again = (seen(runs / "resumed" / str(step), n) for step, n in [(7, 2), (16, 1), (20, 2)])
    batches = [torch.cat(shares) for shares in zip(*(each["batches"] for each in two), strict=True)]
    batches += one["batches"]
    batches += [torch.cat(shares) for shares in zip(*(each["batches"] for each in two_again), strict=True)]
    assert len(batches) == len(whole["batches"]) == 20
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, whole["batches"], strict=True))
    assert furthest(two_again[0]["weights"].values(), whole["weights"].values()) <= 1e-12


def test_three_processes_draw_the_names_of_one(runs):
    for folder, options in [("names", ranks.SAMPLER), ("unique", ranks.UNIQUE)]:
        one, three = ((runs / folder / number / "names.txt").read_text() for number in "13")
        assert one.count("\n") == options["num_names"]
        assert one == three


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [None, 1, 4, 100])
@pytest.mark.parametrize("seed", [None, 1])
def test_each_row_goes_to_one_process_once_per_epoch(seed, batch_size, world_size):
    rows = torch.arange(7)
    loaders = [Batches((rows,), batch_size, seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    for first in (0, len(loaders[0])):
        batches = [loader.batch(first + step)[0] for loader in loaders for step in range(len(loader))]
        assert sorted(torch.cat(batches).tolist()) == rows.tolist()


# The launchers, as people use them.

FIT = [
    "-m",
    "makemore_pl",
    "fit",
    "--data.num_words",
    "200",
    "--trainer.max_steps",
    "20",
    "--trainer.accelerator",
    "cpu",
]


def weights(folder):
    (path,) = folder.glob("lightning_logs/version_*/checkpoints/best.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, command):
    folder = tmp_path_factory.mktemp("alone")
    fit = command(*FIT[2:], cwd=folder)
    assert fit.returncode == 0, fit.stderr
    return folder, fit


@pytest.mark.parametrize("launcher", ["ddp", "ddp_spawn", "torchrun"])
def test_launchers_train_as_one_process(launcher, alone, tmp_path):
    folder, fit = alone
    strategy = "ddp" if launcher == "torchrun" else launcher
    several = ["--trainer.strategy", strategy, "--trainer.devices", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] * (launcher == "torchrun")
    line = [sys.executable, *torchrun, *FIT, *several]
    result = subprocess.run(line, cwd=tmp_path, text=True, capture_output=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 20
    assert furthest(weights(folder).values(), weights(tmp_path).values()) <= 1e-5
    if launcher != "ddp_spawn":  # whose processes do not report the best score
        (before,), (after,) = (re.findall(r"val/loss (\d\.\d{4})", text) for text in (fit.stderr, result.stderr))
        assert float(before) == pytest.approx(float(after), abs=5e-4)


def test_a_mistake_on_several_devices_is_one_line(tmp_path, command):
    (tmp_path / "list.txt").write_text("emma\nzoë\n" * 20)
    flags = ["--data.path", "list.txt", "--data.vocabulary", "aem", "--trainer.accelerator", "cpu"]
    result = command("fit", *flags, "--trainer.strategy", "ddp", "--trainer.devices", 2, cwd=tmp_path)
    assert result.returncode != 0
    errors = [line for line in result.stderr.split("\n") if line.startswith("error: ")]
    assert errors == ["error: 'zoë': character 'z' is not among the 3 of this vocabulary"]
    assert "Traceback" not in result.stderr
    assert not Path(tmp_path, "lightning_logs", "version_0", "checkpoints").exists()
