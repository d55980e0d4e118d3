import itertools
import math
import random
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from makemore_pl import MLP, NamesDataModule
from makemore_pl.commands import lr_find as search
from makemore_pl.commands.lr_find import find_lr, longest_fall, valley
from makemore_pl.optimization import lr_factor
from makemore_pl.pictures.figures import draw_learning_rates


def quiet(folder, **options):
    options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, enable_model_summary=False, **options)


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_fall_is_that_of_all_subsequences(seed):
    values = [random.Random(seed).randrange(8) for _ in range(9)]
    falls = [
        places
        for n in range(10)
        for places in itertools.combinations(range(9), n)
        if all(values[i] > values[j] for i, j in itertools.pairwise(places))
    ]
    found = longest_fall(values)
    assert tuple(found) in falls
    assert len(found) == max(map(len, falls))
    assert longest_fall([]) == []


def test_the_valley_of_a_curve_drawn_by_hand():
    """Falls from 10^-3 to 10^-0.6, then rises: the last third begins at 10^-1.4, its middle is 10^-1."""
    exponents = [-3 + 3 * i / 1000 for i in range(1001)]
    losses = [4 + abs(x + 0.6) for x in exponents]
    found = [math.log10(lr) for lr in valley([10**x for x in exponents], losses)]
    assert found == pytest.approx([-1.0, -1.4, -0.6], abs=0.03)
    losses[950:] = [math.nan] * 51
    assert [math.log10(lr) for lr in valley([10**x for x in exponents], losses)] == pytest.approx(found)
    with pytest.raises(ValueError, match="did not fall at any learning rate"):
        valley([10**x for x in exponents], exponents)


@pytest.mark.parametrize(
    ("schedule", "limits", "times"),
    [
        ("constant", {"max_steps": 500}, 1),
        ("halfway", {"max_steps": 500}, 1),
        ("linear", {"max_steps": 500}, 2),
        ("linear", {"max_epochs": 20}, 2),
        ("linear", {"max_time": "00:00:01:00", "max_epochs": -1}, 1),  # the schedule is constant then
    ],
)
def test_the_suggestion_is_the_peak_of_the_schedule(schedule, limits, times, tmp_path, monkeypatch):
    """Of a curve with its valley at 0.1: the linear schedule averages half of its peak, the others begin at it."""
    monkeypatch.setattr(search, "take_steps", lambda *_: [4 + abs(-3 + 3 * i / 999 + 0.6) for i in range(1000)])
    found = find_lr(quiet(tmp_path, **limits), MLP(schedule=schedule), NamesDataModule(batch_size=32))
    assert [math.log10(lr / times) for lr in found] == pytest.approx([-1.0, -1.4, -0.6], abs=0.03)
    if times == 2:
        assert sum(lr_factor(schedule, step, 500) for step in range(500)) / 500 == pytest.approx(1 / times, abs=0.01)


def test_the_axis_ends_above_the_losses_before_they_blow_up():
    """Falls from 3.3 to 2.2, then rises to 170 and out of the numbers."""
    losses = [3.3 - 0.011 * i for i in range(101)] + [2.2 * 1.05**i for i in range(90)] + [math.inf, math.nan]
    lrs = [0.001 * 1000 ** (i / (len(losses) - 1)) for i in range(len(losses))]
    (axes,) = draw_learning_rates(lrs, losses, 0.02, 0.01, 0.04, 0.5).axes
    bottom, top = axes.get_ylim()
    assert 1.9 < bottom < 2.2
    assert 3.3 < top < 3.8
    assert axes.get_title(loc="left") == "0.02 = 10^-1.7 at every step: take 0.04 as the peak of the schedule"
    (axes,) = draw_learning_rates(lrs, losses, 0.1, 0.05, 0.4).axes
    assert axes.get_title(loc="left") == "take 0.1 = 10^-1.0"


@pytest.mark.parametrize("seed", range(5))
def test_the_lecture_s_learning_rate_is_found(seed, tmp_path):
    model = MLP(init="lecture", optimizer="sgd", schedule="constant", seed=seed)
    data = NamesDataModule(batch_size=32, replacement=True, order_seed=seed)
    lr, low, high = find_lr(quiet(tmp_path), model, data)
    assert 0.1 / 3 < lr < 0.1 * 3
    assert low < lr < high
    assert (tmp_path / "lr_find.png").read_bytes().startswith(b"\x89PNG")


def test_each_step_has_its_learning_rate(tmp_path, monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *args, **more: (seen.append(self.param_groups[0]["lr"]), step(self, *args, **more))[1],
    )
    model = MLP(optimizer="sgd", hidden_size=8)
    find_lr(quiet(tmp_path), model, NamesDataModule(num_words=100), num_steps=7)
    assert seen == pytest.approx([10**x for x in (-3, -2.5, -2, -1.5, -1, -0.5, 0)])


def test_lr_find_on_the_command_line(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--config", ROOT / "configs" / "quick.yaml", "--data.num_words", 2000, "--model.lr", 7]
    status, out, err = call("lr_find", *flags, "--num_steps", 60)
    assert status == 0, err
    first, *_, found, meaning = err.splitlines()
    assert first.startswith("2,000 words, 2,000 distinct: 1,600 train")
    run = Path("lightning_logs", "version_0")
    assert found.endswith(f"; the curve: {run / 'lr_find.png'}")
    assert {path.name.split(".")[0] for path in run.iterdir()} == {"lr_find", "events"}
    events = [EventAccumulator(str(path)).Reload().Tags()["images"] for path in run.glob("events*")]
    assert ["lr_find"] in events
    line, lr = out.strip().rsplit(" ", 1)
    expected = f"python -m makemore_pl fit --config {ROOT / 'configs' / 'quick.yaml'} --data.num_words 2000 --model.lr"
    assert line == expected
    assert 0.001 < float(lr) < 1
    pattern = r"this is the peak of the linear schedule: (2) x (.+), the rate for all steps"
    peak, constant = re.fullmatch(pattern, meaning).groups()
    assert float(lr) == pytest.approx(float(peak) * float(constant), rel=0.1)
    assert call(*out.split()[3:], "--trainer.max_steps", 2)[0] == 0


def test_the_command_of_lr_find_can_be_pasted(call, tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my --list's.txt").write_text("\n".join(names[:300]), encoding="utf-8")
    flags = ["--num_steps=30", "--model.hidden_size", 8, "--data.path", "my --list's.txt", "--model.lr", "0.5"]
    status, out, err = call("lr_find", *flags)
    assert status == 0, err
    words = shlex.split(out)
    expected = ["fit", "--model.hidden_size", "8", "--data.path", "my --list's.txt", "--model.lr"]
    assert words[:-1] == ["python", "-m", "makemore_pl", *expected]


def test_what_lr_find_finds_for_the_default_recipe_trains_well(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("lr_find")
    assert status == 0
    status, _, err = call(*out.split()[3:])
    assert status == 0
    # The default rate gives 2.0882, half of what is found 2.0919.
    assert float(err.split("(val/loss ")[1].split(")")[0]) < 2.0907


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_other_precisions_find_one_too(precision, tmp_path):
    data = NamesDataModule(num_words=300, batch_size=32)
    lr, low, high = find_lr(quiet(tmp_path, precision=precision), MLP(hidden_size=8), data, num_steps=20)
    assert low < lr < high


def test_a_search_without_a_finite_loss_is_refused(tmp_path):
    model = MLP(hidden_size=8)
    model.b2.data[0] = math.nan
    with pytest.raises(ValueError, match="no step had a finite loss"):
        find_lr(quiet(tmp_path), model, NamesDataModule(num_words=100), 20)


def test_several_devices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lr_find runs on one device"):
        find_lr(quiet(tmp_path, devices=2, strategy="ddp_fork"), MLP(), NamesDataModule())


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_steps is 1: expected 2 to 1,000,000"):
        find_lr(quiet(tmp_path), MLP(), NamesDataModule(), num_steps=1)


def test_export_on_the_command_line(default_fit, call, monkeypatch, tmp_path):
    monkeypatch.chdir(default_fit[0])
    status, out, err = call("export", "--output", tmp_path / "page.html")
    assert (status, out) == (0, "")
    size = (tmp_path / "page.html").stat().st_size
    checkpoint = "checkpoint: lightning_logs/version_0/checkpoints/best.ckpt"
    assert err == f"{checkpoint}\n{tmp_path / 'page.html'}: {size:,} bytes\n"
    assert size < 300_000
    for flags, message in [
        ([], "the following arguments are required: export.output"),
        (
            ["--output", tmp_path / "page.pdf"],
            f"{tmp_path / 'page.pdf'}: expected a name that ends in .html, .onnx, .safetensors, .ckpt",
        ),
        (["--output", "x.html", "--ckpt_path", "gone"], "--ckpt_path gone: no such file"),
    ]:
        status, out, err = call("export", *flags)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"error: {message}")
