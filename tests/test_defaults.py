"""What `fit` takes for a list where a flag is omitted."""

from pathlib import Path

import pytest
import torch
import yaml

from makemore_pl import MLP, cli
from makemore_pl.defaults import Training, choose, training

RUN = "lightning_logs/version_0"
FEW = ["--trainer.max_steps", 6, "--model.hidden_size", 8, "--pictures", "false"]


@pytest.fixture
def syllables(folder):
    """The flags of a fit with a list of 1,000 words of 1,500 characters."""
    words = [chr(0xAC00 + 7 * i % 1500) + chr(0xAC00 + 11 * i % 1499) for i in range(1000)]
    Path("words.txt").write_text("\n".join(words), encoding="utf-8")
    return ["fit", "--data.path", "words.txt", *FEW]


def test_names_txt_in_any_order_keeps_the_network_of_the_lecture(names, call, folder):
    Path("sorted.txt").write_text("\n".join(sorted(names)))
    status, _, err = call("fit", "--data.path", "sorted.txt", "--trainer.max_steps", 2, "--pictures", "false")
    assert status == 0, err
    assert "chosen for" not in err
    assert "11,897 parameters" in err


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((7087, 2644, 62), Training(None, 0.8, 2.0, 0.015, 500)),  # English Pokemon
        ((35036, 4672, 59), Training(None, 0.8, 0.5, 0.015, 500)),  # British places
        ((198354, 4781, 32), Training(None, 0.5, 0.3, 0.015, 1000)),  # English words
        ((651674, 8175, 39), Training(None, 0.5, 0.01, 0.03, 1000)),  # names of Unicode's characters
        ((3507, 2193, 960), Training(256, 0.8, 2.0, 0.015, 400)),  # Chinese Pokemon
        ((234756, 97570, 3916), Training(512, 0.0, 0.1, 0.02, 1200)),  # Chinese names
        ((1092295, 395052, 12046), Training(512, 0.0, 0.1, 0.02, 2000)),  # Chinese words
        ((1176269, 35030, 334), Training(2048, 0.8, 0.01, 0.015, 1800)),  # cities of the world
        ((35036, 20000, 59), Training(1024, 0.5, 0.3, 0.01, 1500)),  # longer contexts
    ],
)
def test_three_figures_decide(figures, expected):
    assert training(*figures) == expected


@pytest.mark.parametrize(("V", "units"), [(27, 800), (3916, 267), (12046, 87), (2**21, 1)])
def test_an_alphabet_of_thousands_has_fewer_hidden_units(V, units):
    assert f"--model.hidden_size={units}" in choose(10**6, 10**5, V, lambda *_: False)


def test_what_is_chosen_is_printed_and_kept(syllables, call):
    status, _, err = call(*syllables)
    assert status == 0, err
    flags = "--data.batch_size=256 --data.smoothing=0.8 --model.embedding_dim=32"
    more = "--model.lr=0.015 --model.weight_decay=2.0"
    assert err.splitlines()[:3] == ["chosen for this list:", f"  {flags}", f"  {more}"]
    kept = yaml.safe_load(Path(RUN, "config.yaml").read_text(encoding="utf-8"))
    assert (kept["data"]["batch_size"], kept["model"]["lr"], kept["trainer"]["max_steps"]) == (256, 0.015, 6)

    status, _, err = call(*syllables, *flags.split(), *more.split())
    assert status == 0, err
    assert err.startswith("chosen for this list: nothing\n")
    weights = [torch.load(f"lightning_logs/version_{n}/checkpoints/last.ckpt")["state_dict"] for n in range(2)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("flags", "not_chosen"),
    [
        (["--data.batch_size=64"], "batch_size"),
        (["--data.smoothing", 0], "smoothing"),
        (["--model.optimizer", "sgd"], "--model.lr"),
        (["--config", "quick"], "chosen for"),
        (["-c", "quick"], "chosen for"),
    ],
)
def test_what_is_given_is_taken(flags, not_chosen, syllables, call):
    status, _, err = call(*syllables, *flags)
    assert status == 0, err
    assert not_chosen not in "".join(err.splitlines()[:4])


def test_a_subclass_with_an_optimizer_of_its_own_keeps_its_network(syllables, capsys):
    class Own(MLP):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    made = cli.CLI(Own, args=list(map(str, syllables)))
    assert made.model.hparams["embedding_dim"] == 10
    assert "chosen for" not in capsys.readouterr().err


def test_a_run_whose_validation_loss_has_long_stopped_falling_ends(syllables, call, monkeypatch):
    monkeypatch.setattr("makemore_pl.defaults.PATIENCE", 2)
    overfit = ["--model.lr", 0.3, "--data.smoothing", 0, "--pictures", "false", "--data.steps_per_epoch", 5]
    status, _, err = call(*syllables[:3], *overfit)
    assert status == 0, err
    assert torch.load(f"{RUN}/checkpoints/last.ckpt")["global_step"] < 100  # of 400
    told = choose(10**6, 10**5, 27, lambda flag: flag == "trainer.max_")
    assert not [flag for flag in told if "EarlyStopping" in flag]  # a run that is told how long it takes does not
