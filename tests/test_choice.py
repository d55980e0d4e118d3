"""What `fit` takes where a flag is omitted."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT

from makemore_pl import MLP, defaults
from makemore_pl.defaults import Figures, Training, choose, training

RUN = "lightning_logs/version_0"
FEW = ["--trainer.max_steps", 6, "--model.hidden_size", 8, "--pictures", "false"]


@pytest.fixture
def syllables(tmp_path, monkeypatch):
    """A list of 1,000 words of 1,500 characters."""
    monkeypatch.chdir(tmp_path)
    words = [chr(0xAC00 + 7 * i % 1500) + chr(0xAC00 + 11 * i % 1499) for i in range(1000)]
    (tmp_path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    return ["fit", "--data.path", "words.txt", *FEW]


def weights(version):
    return list(MLP.load_from_checkpoint(f"lightning_logs/version_{version}/checkpoints/last.ckpt").parameters())


@pytest.mark.parametrize("order", ["of the package", "another"])
def test_names_txt_keeps_the_network_of_the_lecture(order, names, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sorted.txt").write_text("\n".join(sorted(names)))
    path = ["--data.path", "sorted.txt"] if order == "another" else []
    status, _, err = call("fit", *path, "--trainer.max_steps", 6, "--pictures", "false")
    assert status == 0, err
    assert "chosen for" not in err
    assert "11,897 parameters" in err


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((7087, 2644, 62), Training(None, 0.8, 2.0, 0.015, 500)),  # English Pokemon
        ((35036, 4672, 59), Training(None, 0.8, 0.5, 0.015, 500)),  # British places
        ((198354, 4781, 32), Training(None, 0.5, 0.3, 0.015, 1000)),  # English words
        ((651674, 8175, 39), Training(None, 0.5, 0.1, 0.015, 1000)),  # names of Unicode's characters
        ((3507, 2193, 960), Training(256, 0.8, 2.0, 0.015, 400)),  # Chinese Pokemon
        ((234756, 97570, 3916), Training(512, 0.0, 0.1, 0.02, 1200)),  # Chinese names
        ((1092295, 395052, 12046), Training(512, 0.0, 0.1, 0.02, 2000)),  # Chinese words
        ((1176269, 35030, 334), Training(2048, 0.8, 0.01, 0.006, 1800)),  # cities of the world
        ((35036, 20000, 59), Training(1024, 0.5, 0.3, 0.01, 1500)),  # longer contexts
    ],
)
def test_three_figures_decide(figures, expected):
    assert training(Figures(*figures)) == expected


def test_the_documents_table_is_the_rule():
    """Its rows are in the order of the figures above, and name what the rule gives: batch, ..., updates."""
    text = (ROOT / "docs" / "lists.md").read_text(encoding="utf-8").split("## Results")[0]
    rows = [line.strip("|").split("|")[1:] for line in text.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip().replace(",", "").replace("all", "0").split(" to ")[0] for cell in row] for row in rows]
    figures = [(10, 4, 27), (60, 4, 27), (100, 4, 27), (300, 4, 27)]  # N below 5 M, 20 M, 60 M, more
    large = 2**20
    figures += [(10, large, 2), (100, large, 2), (10 * large, large, 2), (30 * large, large, 2)]
    expected = []
    for row in (training(Figures(*each)) for each in figures):
        expected.append([row.batch_size or 0, row.smoothing, row.weight_decay, row.lr, row.max_steps])
    assert [[float(cell) for cell in row] for row in cells] == expected


def test_an_alphabet_of_thousands_has_fewer_hidden_units():
    for V, units in [(27, 800), (3916, 267), (12046, 87), (2**21, 1)]:
        assert choose(Figures(10**6, 10**5, V))["model.hidden_size"] == units


def test_what_is_chosen_is_printed_and_kept(syllables, call):
    status, out, err = call(*syllables)
    assert status == 0, err
    flags = "--data.batch_size 256 --data.smoothing 0.8 --model.embedding_dim 32"
    more = "--model.lr 0.015 --model.weight_decay 2.0"
    assert err.splitlines()[:3] == ["chosen for this list:", f"  {flags}", f"  {more}"]
    assert out.count("\n") == 20
    kept = yaml.safe_load(Path(RUN, "config.yaml").read_text(encoding="utf-8"))
    assert (kept["data"]["batch_size"], kept["model"]["lr"], kept["trainer"]["max_steps"]) == (256, 0.015, 6)
    saved = torch.load(f"{RUN}/checkpoints/last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["embedding_dim"] == 32
    assert saved["datamodule_hyper_parameters"]["smoothing"] == 0.8
    assert not saved["datamodule_hyper_parameters"]["counted"]

    status, _, err = call(*syllables, *flags.split(), *more.split())
    assert status == 0, err
    assert err.splitlines()[0] == "chosen for this list: nothing"
    assert all(map(torch.equal, weights(0), weights(1)))


@pytest.mark.parametrize(
    ("flags", "not_chosen"),
    [
        (["--data.batch_size", 64], "batch_size"),
        (["--data.counted", "true"], "batch_size"),
        (["--data.counted", "false"], "batch_size"),
        (["--data.replacement", "true"], "batch_size"),
        (["--data.smoothing", 0], "smoothing"),
        (["--model.optimizer", "sgd"], "lr"),
        (["--config", "quick"], "chosen for"),
    ],
)
def test_what_is_given_is_taken(flags, not_chosen, syllables, call):
    status, _, err = call(*syllables, *flags)
    assert status == 0, err
    assert not_chosen not in "".join(err.splitlines()[:4])


def test_all_windows_in_an_update_need_no_flag(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("\n".join(f"{number:b}" for number in range(300)))
    given = ["--data.smoothing", 0.8, "--model.embedding_dim", 4, "--model.lr", 0.01, "--model.weight_decay", 1]
    status, _, err = call("fit", "--data.path", "words.txt", *FEW, *given)
    assert status == 0, err
    assert err.splitlines()[:2] == [
        "chosen for this list: nothing",
        "300 words, 300 distinct: 240 train / 30 val / 30 test",
    ]


def test_a_resumed_run_has_what_was_chosen_when_it_began(syllables, call, monkeypatch):
    more = ["--model.schedule", "constant"]
    assert call(*syllables, *more, "--trainer.max_steps", 12)[0] == 0
    assert call(*syllables, *more)[0] == 0
    monkeypatch.setattr(defaults, "CELLS", 2**40)
    status, _, err = call("fit", "--ckpt_path", "last", "--trainer.max_steps", 12)
    assert status == 0, err
    assert "chosen for" not in err
    assert all(map(torch.equal, weights(0), weights(1)))


def test_a_run_whose_validation_loss_has_long_stopped_falling_ends(syllables, call, monkeypatch):
    monkeypatch.setattr("makemore_pl.commands.choice.PATIENCE", 2)
    overfit = ["--model.lr", 0.3, "--data.smoothing", 0, "--pictures", "false", "--data.steps_per_epoch", 5]
    status, _, err = call(*syllables[:3], *overfit)
    assert status == 0, err
    (step,) = re.findall(r"\nended at step (\d+): val/loss did not fall in 2 validations\n", err)
    assert int(step) < 400
    status, _, err = call(*syllables[:3], *overfit, "--trainer.max_steps", 60)  # as long as it was told to
    assert status == 0, err
    assert "ended at" not in err
