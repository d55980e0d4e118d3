"""What `fit` takes where a flag is omitted."""

from pathlib import Path

import pytest
import torch
import yaml

from makemore_pl import MLP, defaults
from makemore_pl.defaults import Figures, choose

RUN = "lightning_logs/version_0"
FEW = ["--trainer.max_steps", 6, "--model.hidden_size", 8, "--pictures", "false"]


@pytest.fixture
def syllables(tmp_path, monkeypatch):
    """A list of 400 words of 300 characters."""
    monkeypatch.chdir(tmp_path)
    words = [chr(0xAC00 + 7 * i % 300) + chr(0xAC00 + 11 * i % 299) for i in range(400)]
    (tmp_path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    return ["fit", "--data.path", "words.txt", *FEW]


def test_names_are_trained_on_as_the_signatures_say(call, tmp_path, monkeypatch):
    assert choose(Figures(182518, 4854, 27)) == {}
    monkeypatch.chdir(tmp_path)
    status, _, err = call("fit", *FEW)
    assert status == 0, err
    assert "chosen for" not in err


def test_contexts_by_characters_decide_whether_a_step_takes_all_windows():
    assert choose(Figures(10**6, 2**13, 2**10)) == {}
    assert choose(Figures(10**6, 2**13 + 1, 2**10)) == {"data.batch_size": 1024}


def test_minibatches_are_chosen_printed_and_kept(syllables, call, monkeypatch):
    monkeypatch.setattr(defaults, "CELLS", 1000)
    monkeypatch.setattr(defaults, "BATCH_SIZE", 128)
    status, out, err = call(*syllables)
    assert status == 0, err
    assert err.splitlines()[0] == "chosen for this list: --data.batch_size 128"
    assert out.count("\n") == 20
    assert yaml.safe_load(Path(RUN, "config.yaml").read_text(encoding="utf-8"))["data"]["batch_size"] == 128
    saved = torch.load(f"{RUN}/checkpoints/last.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert (saved["batch_size"], saved["counted"]) == (128, False)

    given, _, _ = call(*syllables, "--data.batch_size", 128)
    assert given == 0
    first, second = (MLP.load_from_checkpoint(f"lightning_logs/version_{i}/checkpoints/last.ckpt") for i in (0, 1))
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize(
    "flags",
    [
        ["--data.batch_size", 64],
        ["--data.counted", "true"],
        ["--data.counted", "false"],
        ["--data.replacement", "true"],
        ["--config", "quick"],
    ],
)
def test_what_is_given_is_taken(flags, syllables, call, monkeypatch):
    monkeypatch.setattr(defaults, "CELLS", 1000)
    status, _, err = call(*syllables, *flags)
    assert status == 0, err
    assert "chosen for" not in err


def test_a_resumed_run_has_what_was_chosen_when_it_began(syllables, call, monkeypatch):
    more = ["--model.schedule", "constant", "--data.smoothing", 0.5]
    monkeypatch.setattr(defaults, "CELLS", 1000)
    monkeypatch.setattr(defaults, "BATCH_SIZE", 128)
    assert call(*syllables, *more, "--trainer.max_steps", 12)[0] == 0
    assert call(*syllables, *more)[0] == 0
    monkeypatch.setattr(defaults, "BATCH_SIZE", 64)
    status, _, err = call("fit", "--ckpt_path", "last", "--trainer.max_steps", 12)
    assert status == 0, err
    assert "chosen for" not in err
    whole, resumed = (MLP.load_from_checkpoint(f"lightning_logs/version_{i}/checkpoints/last.ckpt") for i in (0, 1))
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
