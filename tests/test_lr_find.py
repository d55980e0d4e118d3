import math
import re
import shlex

import pytest
import yaml
from lightning.pytorch import Trainer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from makemore_pl import MLP, NamesDataModule
from makemore_pl import lr_find as search
from makemore_pl.lr_find import lr_find, valley


def find(folder, capsys, model, data, num_steps=None, **options):
    """Returns the suggestion, and the lowest and highest good learning rates, as they are printed."""
    options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    lr_find(Trainer(default_root_dir=folder, enable_model_summary=False, **options), model, data, num_steps)
    found = re.search(r"^learning rate (\S+), good from (\S+) to (\S+);", capsys.readouterr().err, re.MULTILINE)
    return tuple(map(float, found.groups()))


EXPONENTS = [-3 + 3 * i / 999 for i in range(1000)]
CURVE = [4 + abs(x + 0.6) for x in EXPONENTS]


def test_the_valley_of_a_curve_drawn_by_hand():
    """Falls from 10^-3 to 10^-0.6, then rises: the last third begins at 10^-1.4, its middle is 10^-1."""
    lrs = [10**x for x in EXPONENTS]
    assert [math.log10(lr) for lr in valley(lrs, CURVE)] == pytest.approx([-1.0, -1.4, -0.6], abs=0.03)
    assert valley(lrs, CURVE[:950] + [math.nan] * 50) == pytest.approx(valley(lrs, CURVE))
    peaks = [loss + (i // 20 in (15, 45)) for i, loss in enumerate(CURVE)]  # neither ends the fall nor is part of it
    assert valley(lrs, peaks) == pytest.approx(valley(lrs, CURVE))
    for never in (EXPONENTS, [math.nan] * 1000):
        with pytest.raises(ValueError, match="did not fall at any learning rate"):
            valley(lrs, never)


@pytest.mark.parametrize(("schedule", "times"), [("constant", 1), ("halfway", 1), ("linear", 2)])
def test_the_suggestion_is_the_peak_of_the_schedule(schedule, times, tmp_path, monkeypatch, capsys):
    """The linear schedule averages half of its peak, the others begin at it."""
    monkeypatch.setattr(search, "take_steps", lambda *_: CURVE)
    found = find(tmp_path, capsys, MLP(schedule=schedule), NamesDataModule(batch_size=32), 1000)
    assert [math.log10(lr / times) for lr in found] == pytest.approx([-1.0, -1.4, -0.6], abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_the_lectures_learning_rate_is_found(seed, tmp_path, capsys):
    model = MLP(init="lecture", optimizer="sgd", schedule="constant", seed=seed)
    lr, low, high = find(tmp_path, capsys, model, NamesDataModule(batch_size=32, replacement=True))
    assert 0.1 / 3 < lr < 0.1 * 3
    assert low < lr < high
    assert (tmp_path / "lr_find.png").read_bytes().startswith(b"\x89PNG")


def test_each_step_has_its_learning_rate(tmp_path, capsys):
    """Seven rates, equally far apart in the exponent; and precisions other than 32 bits work."""
    seen = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    for precision in ("32-true", "64-true", "bf16-mixed"):
        model = MLP(optimizer="sgd", hidden_size=8)
        find(tmp_path, capsys, model, NamesDataModule(num_words=100), 7, precision=precision)
    hook.remove()
    assert seen == pytest.approx([10**x for x in (-3, -2.5, -2, -1.5, -1, -0.5, 0)] * 3)


def test_the_printed_command_can_be_pasted(call, folder, names):
    (folder / "my --list's.txt").write_text("\n".join(names[:300]), encoding="utf-8")
    kept = ["--data.path", "my --list's.txt", "--data.batch_size", "32"]
    status, out, err = call("lr_find", "--num_steps=60", "--model.lr", 7, *kept)
    assert status == 0, err
    assert "300 words, 300 distinct: 240 train" in err
    run = folder / "lightning_logs" / "version_0"
    assert "; the curve: lightning_logs/version_0/lr_find.png\n" in err
    assert {path.name.split(".")[0] for path in run.iterdir()} == {"lr_find", "events"}
    *words, lr = shlex.split(out)
    assert words[-6:] == ["fit", *kept, "--model.lr"]
    assert f"learning rate {lr}, good from " in err
    status, config, err = call("fit", *words[4:], lr, "--print_config")
    assert status == 0, err
    assert yaml.safe_load(config)["model"]["lr"] == float(lr)
